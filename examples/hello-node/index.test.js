'use strict';

const test = require('node:test');
const assert = require('node:assert');
const { handler } = require('./index');

test('greets by name', async () => {
  const reply = await handler({ queryStringParameters: { name: 'kuroko' } });
  assert.strictEqual(reply.message, 'hello, kuroko');
  assert.match(reply.up, /^\d+ (ms|seconds?)$/);
});

test('greets the world', async () => {
  const reply = await handler({ queryStringParameters: {} });
  assert.strictEqual(reply.message, 'hello, world');
});
