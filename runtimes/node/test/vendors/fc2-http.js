'use strict';
// As FC 2's HTTP functions: request, response, context; the body is read as a stream.
exports.handler = (request, response, context) => {
  const chunks = [];
  request.on('data', (c) => chunks.push(c));
  request.on('end', () => {
    response.setStatusCode(200);
    response.setHeader('Content-Type', 'application/json');
    response.send(JSON.stringify({ path: request.path, name: request.queries.name, length: Buffer.concat(chunks).length, request: context.requestId }));
  });
};
