'use strict';
// As Alibaba Function Compute 3 writes an HTTP-triggered handler: the event is bytes there.
exports.handler = async (event, context) => {
  const e = JSON.parse(event.toString());
  context.logger.info('receive event: %s', e.rawPath);
  return {
    statusCode: 200,
    headers: { 'Content-Type': 'text/plain' },
    isBase64Encoded: false,
    body: `${e.requestContext.http.method} ${e.queryParameters.name || 'FC'} ${context.requestId}`,
  };
};
