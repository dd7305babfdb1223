'use strict';

const test = require('node:test');
const assert = require('node:assert');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const { fn, folder, launch, home } = require('./helper');

async function refused(t, o) {
  const p = await launch(t, { files: {}, until: 'exit', ...o });
  const { code } = await p.exit;
  assert.strictEqual(code, 1, p.stdout + p.stderr);
  const line = JSON.parse(p.stderr.trim().split('\n').pop());
  assert.strictEqual(line.level, 'fatal');
  return line;
}

const ok = { 'index.js': 'exports.a = async () => 1;' };

test('what keeps a unit from becoming ready ends the process with the reason', async (t) => {
  const cases = {
    'no table': [{ unit: '' }, /FAAS_UNIT is not set/],
    'unknown contract': [{ functions: [fn('a', { contract: 'app' })] }, /functions\[0\]\.contract: "app" is not a contract/],
    'bad port': [{ files: ok, functions: [fn('a')], env: { PORT: 'x' } }, /PORT must be a port number/],
    'bad limit': [{ files: ok, functions: [fn('a')], env: { FAAS_BODY_LIMIT: '-1' } }, /FAAS_BODY_LIMIT must be/],
    'no file': [{ functions: [fn('a')] }, /function a: handler index\.a: no such file; looked for index\.js, index\.cjs/],
    'no export': [{ files: { 'index.js': 'exports.b = () => 1; exports.c = 2;' }, functions: [fn('a')] }, /exports no function a; it exports b/],
    'module missing': [{ files: { 'index.js': 'require("not-there")' }, functions: [fn('a')] }, /function a: handler index\.a can't be loaded: Error: Cannot find module 'not-there'/],
    'syntax error': [{ files: { 'index.js': 'exports.a = (' }, functions: [fn('a')] }, /index\.js:1\n/],
    'throws while loading': [{ files: { 'index.js': 'throw new TypeError("top")' }, functions: [fn('a')] }, /can't be loaded: TypeError: top/],
    'exits while loading': [{ files: { 'index.js': 'process.exit(0)' }, functions: [fn('a')] }, /process\.exit\(0\) was called/],
    'init fails': [{ files: { 'index.js': 'exports.a = () => 1; exports.init = async () => { throw new Error("no database") }' }, functions: [fn('a')] }, /function a: its init hook failed: Error: no database/],
    'uncaught while starting': [{ files: { 'index.js': 'exports.a = () => 1; exports.init = () => new Promise(() => setImmediate(() => { throw new Error("later") }))' }, functions: [fn('a')] }, /function a: uncaught exception while starting: Error: later/],
    'same route': [{ files: { 'index.js': 'exports.a = exports.b = () => 1' }, functions: [fn('a'), fn('b', { routes: [{ path: '/a' }] })] }, /functions a and b both claim ANY \/a/],
  };
  for (const [name, [o, want]] of Object.entries(cases)) {
    await t.test(name, async (t) => {
      const line = await refused(t, o);
      assert.match(line.msg, want);
    });
  }
});

test('the stack of the user\'s own error is in the log', async (t) => {
  const line = await refused(t, { files: { 'index.js': 'function deep() { throw new Error("x") }\ndeep()' }, functions: [fn('a')] });
  assert.match(line.stack, /at deep .*index\.js:1/);
});

test('a port in use is named', async (t) => {
  const p = await launch(t, { files: ok, functions: [fn('a')] });
  const line = await refused(t, { files: ok, functions: [fn('a')], env: { PORT: String(p.port) } });
  assert.match(line.msg, new RegExp(`listen on port ${p.port}: .*EADDRINUSE`));
});

test('FAAS_HOST narrows who can reach the port', async (t) => {
  const p = await launch(t, { files: { 'index.js': 'exports.a = () => "x";' }, functions: [fn('a')], env: { FAAS_HOST: '127.0.0.1' } });
  const others = Object.values(os.networkInterfaces()).flat().filter((i) => i.family === 'IPv4' && !i.internal);
  assert.strictEqual(await reach('127.0.0.1', p.port), true);
  for (const { address } of others) assert.strictEqual(await reach(address, p.port), false, address);
});

/** Whether something listens there. */
function reach(host, port) {
  return new Promise((resolve) => {
    const s = net.connect({ host, port }, () => { s.destroy(); resolve(true); });
    s.on('error', () => resolve(false));
  });
}

test('handlers are found as CommonJS, ES modules, instances and defaults', async (t) => {
  const files = {
    'a.js': 'module.exports = { a: async () => "a" };',
    'b.mjs': 'const x = await Promise.resolve("b"); export const b = async () => x;',
    'c.cjs': 'class C { c() { return "c" } } module.exports = new C();',
    'd/index.js': 'module.exports = () => "d";',
    'e/package.json': '{"type":"module"}',
    'e/e.js': 'export default () => "e";',
    'f.js': 'Object.defineProperty(exports, "__esModule", {value: true}); exports.default = () => "f";',
    'g.js': 'for (const k of ["g"]) exports[k] = () => k;',
  };
  const handlers = { a: 'a.a', b: 'b.b', c: 'c.c', d: 'd.default', e: 'e/e.default', f: 'f.default', g: 'g.g' };
  const p = await launch(t, { files, functions: Object.entries(handlers).map(([n, handler]) => fn(n, { handler })) });
  for (const name of Object.keys(handlers)) {
    const r = await p.request(`/${name}`);
    assert.strictEqual(r.text, name);
  }
});

test('the init hook of a file runs once, before ready, with a context', async (t) => {
  const files = { 'index.js': `
    let runs = 0, seen;
    exports.init = async (context) => { await new Promise((r) => setImmediate(r)); runs++; seen = context.functionVersion; console.log('init ran'); };
    exports.a = () => ({ runs, seen, x: process.env.X });
    exports.b = exports.a;` };
  const p = await launch(t, { files, functions: [fn('a', { environment: { X: 'y' } }), fn('b')], env: { K_REVISION: 'r-1' } });
  assert.deepStrictEqual((await p.request('/b')).json(), { runs: 1, seen: 'r-1', x: 'y' });
  const order = p.lines.map((l) => l.msg).filter((m) => m !== 'request');
  assert.deepStrictEqual(order, ['listening', 'init ran', 'ready']);
  assert.strictEqual(p.lines.find((l) => l.msg === 'init ran').function, 'a');
});

test('while starting: alive, not ready, no function called', async (t) => {
  const files = { 'index.js': `
    let go;
    exports.init = () => new Promise((r) => { process.on('SIGUSR2', r); setInterval(() => {}, 1000).unref(); console.log('in init'); });
    exports.a = () => 'a';` };
  const p = await launch(t, { files, functions: [fn('a')], until: 'in init' });
  const ready = await p.request('/health/readiness');
  assert.deepStrictEqual([ready.status, ready.json()], [503, { status: 'starting' }]);
  assert.strictEqual((await p.request('/health/liveness')).status, 200);
  const early = await p.request('/a');
  assert.deepStrictEqual([early.status, early.json().errorType, early.headers['retry-after']], [503, 'NotReady', '1']);
  assert.strictEqual((await p.request('/a', { headers: { 'x-faas-nonce': '1' } })).status, 503);
  p.child.kill('SIGUSR2');
  await p.line((l) => l.msg === 'ready');
  assert.strictEqual((await p.request('/health/readiness')).status, 200);
  assert.strictEqual((await p.request('/a')).text, 'a');
});

test('FAAS_LOAD=lazy loads at the first call what has no hooks', async (t) => {
  const files = {
    'a.js': 'console.log("a loaded"); exports.a = () => "a";',
    'b.js': 'console.log("b loaded"); exports.b = () => "b"; exports.init = () => {};',
    'c.js': 'throw new Error("c is broken"); exports.c = 1;',
  };
  const functions = ['a', 'b', 'c'].map((n) => fn(n, { handler: `${n}.${n}` }));
  const p = await launch(t, { files, functions, env: { FAAS_LOAD: 'lazy' } });
  assert.deepStrictEqual(p.lines.map((l) => l.msg), ['listening', 'b loaded', 'ready']);
  assert.strictEqual((await p.request('/a')).text, 'a');
  assert.strictEqual((await p.request('/a')).text, 'a');
  await p.line((l) => l.msg === 'a loaded');
  const c = await p.request('/c');
  assert.strictEqual(c.status, 500);
  assert.match(c.json().errorMessage, /c is broken/);
  await p.line((l) => l.msg === 'request' && l.function === 'c');
  assert.strictEqual(p.lines.filter((l) => l.msg === 'a loaded').length, 1);
});

test('platform.json beside main.js marks every answer', async (t) => {
  const copy = folder(t, {});
  for (const f of ['main.js', 'package.json', 'lib']) {
    fs.cpSync(path.join(home, f), path.join(copy, f), { recursive: true });
  }
  const o = { files: ok, functions: [fn('a')], main: copy };
  fs.writeFileSync(path.join(copy, 'platform.json'), '{"mark": "spring tide"}');
  const p = await launch(t, o);
  for (const target of ['/a', '/nope', '/health/readiness']) {
    assert.strictEqual((await p.request(target)).headers['x-faas-platform'], 'spring tide', target);
  }
  fs.writeFileSync(path.join(copy, 'platform.json'), '{"mark": "two\\nlines"}');
  assert.match((await refused(t, o)).msg, /platform\.json: mark:/);
  fs.writeFileSync(path.join(copy, 'platform.json'), '{');
  assert.match((await refused(t, o)).msg, /platform\.json:/);
});
