'use strict';

const test = require('node:test');
const assert = require('node:assert');
const http = require('http');
const { fn, launch } = require('./helper');

const files = { 'index.js': `
  exports.quick = async () => 'quick';
  exports.held = async () => { console.log('in held'); await new Promise((r) => process.once('SIGUSR2', r)); return 'held'; };
  exports.preStop = async () => { await null; console.log('preStop ran'); };
` };

test('SIGTERM: readiness fails first, what runs ends, preStop runs, exit 0', async (t) => {
  const p = await launch(t, { files, functions: [fn('quick'), fn('held')], env: { FAAS_DRAIN_DELAY_MS: '6000' } });
  const agent = new http.Agent({ keepAlive: true });
  t.after(() => agent.destroy());
  assert.strictEqual((await p.request('/quick', { agent })).text, 'quick');
  const held = p.request('/held');
  await p.line((l) => l.msg === 'in held');
  p.child.kill('SIGTERM');
  await p.line((l) => l.msg === 'draining');
  const ready = await p.request('/health/readiness');
  assert.deepStrictEqual([ready.status, ready.json()], [503, { status: 'draining' }]);
  assert.strictEqual((await p.request('/health/liveness')).status, 200);
  const last = await p.request('/quick', { agent });
  assert.deepStrictEqual([last.text, last.headers.connection], ['quick', 'close']);
  p.child.kill('SIGUSR2');
  assert.strictEqual((await held).text, 'held');
  assert.deepStrictEqual(await p.exit, { code: 0, signal: null });
  const tail = p.lines.map((l) => l.msg).slice(-2);
  assert.deepStrictEqual(tail, ['preStop ran', 'stopped']);
});

test('SIGTERM with idle connections ends at once', async (t) => {
  const p = await launch(t, { files, functions: [fn('quick')] });
  const agent = new http.Agent({ keepAlive: true });
  t.after(() => agent.destroy());
  await p.request('/quick', { agent });
  const began = Date.now();
  p.child.kill('SIGTERM');
  assert.deepStrictEqual(await p.exit, { code: 0, signal: null });
  assert.ok(Date.now() - began < 15000, 'it waited for the keep-alive time');
});

test('what does not end within the limit is cut, and preStop that fails is only logged', async (t) => {
  const bad = { 'index.js': files['index.js'].replace("console.log('preStop ran')", "throw new Error('no')") };
  const p = await launch(t, { files: bad, functions: [fn('held')], env: { FAAS_DRAIN_MS: '50' } });
  const held = p.request('/held');
  held.catch(() => {});
  await p.line((l) => l.msg === 'in held');
  p.child.kill('SIGTERM');
  await assert.rejects(held);
  assert.deepStrictEqual(await p.exit, { code: 0, signal: null });
  assert.ok(p.lines.some((l) => /^1 requests did not end within 50 ms/.test(l.msg)));
  assert.ok(p.lines.some((l) => /^preStop of index\.held failed: no/.test(l.msg)));
});

test('SIGTERM while starting, and a second one, end at once', async (t) => {
  const hangs = { 'index.js': "exports.a = () => 1; exports.init = () => { console.log('in init'); return new Promise(() => {}); };" };
  const p = await launch(t, { files: hangs, functions: [fn('a')], until: 'in init' });
  p.child.kill('SIGTERM');
  assert.deepStrictEqual(await p.exit, { code: 0, signal: null });

  const q = await launch(t, { files, functions: [fn('held')] });
  q.request('/held').catch(() => {});
  await q.line((l) => l.msg === 'in held');
  q.child.kill('SIGTERM');
  await q.line((l) => l.msg === 'draining');
  q.child.kill('SIGTERM');
  assert.deepStrictEqual(await q.exit, { code: 1, signal: null });
});
