'use strict';

const test = require('node:test');
const assert = require('node:assert');
const { handler } = require('./count');
const warm = require('./warm').handler;

const job = (index) => ({ job: { index, completions: 2 } });

test('each completion counts its own texts', async () => {
  const event = { texts: ['one', 'two words', 'and three words'] };
  assert.strictEqual(await handler(event, job(0)), 4);
  assert.strictEqual(await handler(event, job(1)), 2);
});

test('a timer brings the texts in its payload', async () => {
  assert.strictEqual(await handler({ triggerTime: '2026-01-02T03:04:00Z', triggerName: '0 2 * * *', payload: '{"texts": ["a b"]}' }, job(0)), 2);
});

test('what is no text fails the run', async () => {
  await assert.rejects(handler({ texts: [1] }, job(0)), /not a text: 1/);
});

test('the clock warms what requests get', async () => {
  assert.deepStrictEqual(await warm({}), { warm: 'never' });
  await warm({ triggerTime: '2026-01-02T03:00:00Z', triggerName: 'every 10m', payload: '' });
  assert.deepStrictEqual(await warm({}), { warm: '2026-01-02T03:00:00Z' });
});
