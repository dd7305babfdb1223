'use strict';

const ms = require('ms');

const started = Date.now();

// Answers GET /hello?name=you.
exports.handler = async (event) => ({
  message: `hello, ${event.queryStringParameters.name || 'world'}`,
  up: ms(Date.now() - started, { long: true }),
});
