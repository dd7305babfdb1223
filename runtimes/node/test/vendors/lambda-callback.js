'use strict';
// As older Lambda examples: the third argument answers.
module.exports.handler = function (event, context, callback) {
  context.callbackWaitsForEmptyEventLoop = false;
  if (!event.body) {
    return callback(null, { statusCode: 400, body: 'no body' });
  }
  const input = JSON.parse(event.isBase64Encoded ? Buffer.from(event.body, 'base64').toString() : event.body);
  setTimeout(function () {
    callback(null, { statusCode: 200, body: JSON.stringify({ sum: input.a + input.b }) });
  }, 1);
};
