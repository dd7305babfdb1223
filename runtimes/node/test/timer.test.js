'use strict';

const test = require('node:test');
const assert = require('node:assert');
const { fn, launch } = require('./helper');

const key = 'k'.repeat(43);
const timer = { function: 'a', name: 'every 1h', payload: '{"n":1}', source: '/prod/shop' };
const job = (more = {}) => fn('a', { routes: [], job: { completions: 3, parallelism: 2 }, ...more });

/** Runs a container to its end. */
async function run(t, o) {
  const p = await launch(t, { until: 'exit', ...o });
  const { code } = await p.exit;
  return { code, p };
}

const seen = 'exports.a = async (e, c) => { console.log("seen " + JSON.stringify({ e, s: e.toString(), ce: c.cloudEvent, job: c.job, left: c.getRemainingTimeInMillis(), key: process.env.FAAS_TIMER_KEY })); };';
// The answer to a request can overtake the line on its way through the pipe.
const what = async (p) => JSON.parse((await p.line((l) => (l.msg || '').startsWith('seen '))).msg.slice(5));

test('a timer calls a function, and only with the key', async (t) => {
  const p = await launch(t, { files: { 'index.js': seen + 'exports.b = async () => { throw new Error("no") }' }, functions: [fn('a'), fn('b'), fn('c', { handler: 'index.a', contract: 'http' })], env: { FAAS_TIMER_KEY: key } });
  const call = (headers, body) => p.request('/_faas/timer', { headers, body: JSON.stringify(body) });
  const full = { function: 'a', triggerName: 'every 1h', payload: 'x', triggerTime: '2026-01-02T03:00:00Z', id: 'i-1', source: '/prod/shop' };
  assert.strictEqual((await call({ 'x-faas-timer': key + 'x' }, full)).status, 403);
  assert.strictEqual((await call({ 'x-faas-timer': '' }, full)).status, 403);
  assert.strictEqual((await call({}, full)).status, 404);
  assert.ok(!p.stdout.includes('seen'));

  const ok = await call({ 'x-faas-timer': key }, full);
  assert.strictEqual(ok.status, 204);
  const s = await what(p);
  assert.deepStrictEqual(s.e, { triggerTime: '2026-01-02T03:00:00Z', triggerName: 'every 1h', payload: 'x' });
  assert.deepStrictEqual(JSON.parse(s.s), s.e);
  assert.deepStrictEqual([s.ce.id, s.ce.type, s.ce.source, s.ce.time, s.ce.data], ['i-1', 'dev.kuroko.timer', '/prod/shop', '2026-01-02T03:00:00Z', 'x']);
  assert.strictEqual(s.key, undefined);
  const access = await p.line((l) => l.msg === 'request' && l.status === 204);
  assert.deepStrictEqual([access.function, access.route], ['a', 'timer every 1h']);

  assert.strictEqual((await call({ 'x-faas-timer': key }, { ...full, function: 'b' })).status, 500);
  assert.strictEqual((await call({ 'x-faas-timer': key }, { ...full, function: 'c' })).status, 404);
  assert.strictEqual((await call({ 'x-faas-timer': key }, { ...full, function: 'none' })).status, 404);
  assert.strictEqual((await p.request('/x', { headers: { 'x-faas-timer': key }, body: 'no json' })).status, 400);

  await t.test('fire makes the call and ends with its outcome', async (t) => {
    const env = (name, more) => ({ FAAS_FIRE: JSON.stringify({ url: `http://127.0.0.1:${p.port}`, headers: { 'x-request-id': `fire-${name}` }, timeoutMs: 60000 }), FAAS_TIMER: JSON.stringify({ ...timer, function: name }), FAAS_TIMER_KEY: key, FAAS_JOB_NAME: 'shop-a-1-29400000', ...more });
    const good = await run(t, { files: {}, unit: '', env: env('a') });
    assert.strictEqual(good.code, 0, good.p.stderr);
    assert.match(good.p.stdout, /function a answered 204/);
    await p.line((l) => l.requestId === 'fire-a' && l.msg.includes('"triggerTime":"2025-11-24T16:00:00Z"') && l.msg.includes('"id":"shop-a-1-29400000"'));
    const failing = await run(t, { files: {}, unit: '', env: env('b') });
    assert.strictEqual(failing.code, 1);
    assert.match(failing.p.stderr, /function b answered 500: .*no/);
    const locked = await run(t, { files: {}, unit: '', env: env('a', { FAAS_TIMER_KEY: 'wrong' }) });
    assert.strictEqual(locked.code, 1);
    assert.match(locked.p.stderr, /answered 403/);
    const broken = await run(t, { files: {}, unit: '', env: { FAAS_FIRE: '{' } });
    assert.strictEqual(broken.code, 1);
    assert.match(broken.p.stderr, /FAAS_FIRE is not JSON/);
  });
});

test('without a key the header means nothing', async (t) => {
  const p = await launch(t, { files: { 'index.js': 'exports.a = () => 1' }, functions: [fn('a')] });
  assert.strictEqual((await p.request('/_faas/timer', { headers: { 'x-faas-timer': '' }, body: '{}' })).status, 404);
});

test('a job runs once and ends with its outcome', async (t) => {
  const cases = {
    'returns': [seen, {}, 0],
    'by a timer': [seen, { FAAS_TIMER: JSON.stringify(timer), FAAS_JOB_NAME: 'shop-a-1-29400000', JOB_COMPLETION_INDEX: '2' }, 0],
    'by hand': [seen, { FAAS_EVENT: '{"x":[1]}' }, 0],
    'throws': ['exports.a = async () => { throw new TypeError("broken") }', {}, 1, /broken/],
    'nobody caught': ['exports.a = () => new Promise(() => setImmediate(() => { throw new Error("late") }))', {}, 1, /late/],
    'rejects unhandled': ['exports.a = () => new Promise(() => { Promise.reject(new Error("lost")) })', {}, 1, /lost/],
    'never settles': ['exports.a = () => new Promise(() => {})', {}, 1, /neither returned nor threw/],
    'exits': ['exports.a = async () => { process.exit(7) }', {}, 7],
    'exits while loading': ['process.exit(0)', {}, 1, /process\.exit\(0\) was called/],
    'has a bad event': [seen, { FAAS_EVENT: '{' }, 1, /FAAS_EVENT is not JSON/],
    'does not load': ['exports.b = 1', {}, 1, /exports no function a/],
  };
  for (const [name, [code, env, want, words]] of Object.entries(cases)) {
    await t.test(name, async (t) => {
      const r = await run(t, { files: { 'index.js': code }, functions: [job({ timeoutMs: 60000 })], env: { PORT: 'none is needed', ...env } });
      assert.strictEqual(r.code, want, r.p.stdout + r.p.stderr);
      if (words) {
        assert.match(r.p.stdout + r.p.stderr, words);
      }
      if (want === 0) {
        const s = await what(r.p);
        const byTimer = name === 'by a timer';
        assert.deepStrictEqual(s.e, byTimer ? { triggerTime: '2025-11-24T16:00:00Z', triggerName: 'every 1h', payload: '{"n":1}' } : JSON.parse(env.FAAS_EVENT || '{}'));
        assert.deepStrictEqual(s.job, { run: env.FAAS_JOB_NAME || '', index: byTimer ? 2 : 0, completions: 3, parallelism: 2 });
        assert.ok(s.left > 0 && s.left <= 60000);
      }
    });
  }
});

test('init runs before the job, preStop after it', async (t) => {
  const r = await run(t, { files: { 'index.js': 'exports.a = () => console.log("work"); exports.init = () => console.log("open"); exports.preStop = () => console.log("close")' }, functions: [job()] });
  assert.strictEqual(r.code, 0);
  assert.deepStrictEqual(r.p.lines.map((l) => l.msg).filter((m) => ['open', 'work', 'close'].includes(m)), ['open', 'work', 'close']);
});

test('a job that is stopped hears of it', async (t) => {
  const p = await launch(t, { until: 'at work', files: { 'index.js': 'exports.a = (e, c) => new Promise((r) => { c.signal.addEventListener("abort", () => { console.log("put away"); }); setInterval(() => {}, 1000); console.log("at work") })' }, functions: [job()] });
  p.child.kill('SIGTERM');
  const { code } = await p.exit;
  assert.strictEqual(code, 143);
  assert.ok(p.lines.some((l) => l.msg === 'put away'));
});

test('a job is alone in its unit', async (t) => {
  const r = await run(t, { files: {}, functions: [job(), fn('b')] });
  assert.strictEqual(r.code, 1);
  assert.match(r.p.stderr, /a job is alone in its unit/);
});
