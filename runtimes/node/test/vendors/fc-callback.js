// As FC up to Node.js 16, with an initializer.
'use strict';
let greeting = '';
exports.initializer = (context, callback) => {
  greeting = 'hello';
  callback(null, '');
};
exports.handler = (event, context, callback) => {
  const eventObj = JSON.parse(event);
  callback(null, { statusCode: 200, body: `${greeting} ${eventObj.queryParameters.name}` });
};
