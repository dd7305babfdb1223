// As AWS Lambda's documentation writes a handler behind an HTTP API.
exports.handler = async (event, context) => {
  const name = (event.queryStringParameters && event.queryStringParameters.name) || 'World';
  return {
    statusCode: 200,
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ message: `Hello ${name}`, method: event.requestContext.http.method, request: context.awsRequestId }),
  };
};
