'use strict';

const test = require('node:test');
const assert = require('node:assert');
const http = require('http');
const net = require('net');
const { fn, launch } = require('./helper');

/** Sends bytes and returns all that comes back until the other side closes. */
function raw(port, bytes, { end = false } = {}) {
  return new Promise((resolve, reject) => {
    const s = net.connect(port, '127.0.0.1', () => (end ? s.end(bytes) : s.write(bytes)));
    let all = '';
    s.on('data', (b) => (all += b.toString('latin1')));
    s.on('close', () => resolve(all));
    s.on('error', (err) => (all ? resolve(all) : reject(err)));
  });
}

test('one port, many requests', async (t) => {
  const files = { 'index.js': `
    exports.a = async (event, c) => { console.log('one', { two: 2 }); console.error(new Error('logged')); console.debug('d'); console.warn('w'); return 'a'; };
    let last;
    exports.b = async (event, c) => { const was = last && last.aborted; last = c.signal; return was ? 'the last signal fired' : 'b'; };
    exports.exits = async () => { process.exit(3); };
    exports.later = async () => { setTimeout(() => process.exit(4), 1); await new Promise(() => {}); };
    exports.kills = async () => { process.kill(process.pid, 'SIGKILL'); };
    exports.uncaught = async () => { setTimeout(() => { throw new TypeError('from a timer'); }, 1); await new Promise(() => {}); };
    exports.unhandled = async () => { (async () => { throw new Error('forgotten'); })(); await new Promise(() => {}); };
    exports.answered = async () => { setTimeout(() => { throw new Error('after the answer'); }, 1); return 'answered'; };
    exports.sized = async (event) => String(event.body.length);
    exports.slow = async (event, c) => { console.log('in slow'); await new Promise((r) => c.signal.addEventListener('abort', r)); console.log('aborted'); };
  ` };
  const names = ['a', 'exits', 'later', 'kills', 'uncaught', 'unhandled', 'answered', 'sized'];
  const functions = [fn('b', { routes: [{ path: '/b', methods: ['GET', 'PUT'] }] }), fn('slow', { timeoutMs: 30, routes: [{ path: '/slow' }, { path: '/slower', timeoutMs: 30000 }] }), ...names.map((n) => fn(n))];
  const env = { K_REVISION: 'r-1', FAAS_IMAGE: 'reg/i@sha256:0', FAAS_KEY: 'key-1', FAAS_BODY_LIMIT: '1000' };
  const p = await launch(t, { files, functions, env });

  await t.test('404 and 405', async () => {
    const none = await p.request('/none', { headers: { 'x-request-id': 'i' } });
    assert.deepStrictEqual([none.status, none.json()], [404, { errorType: 'NotFound', errorMessage: 'no function has this path', requestId: 'i' }]);
    const post = await p.request('/b', { method: 'POST' });
    assert.deepStrictEqual([post.status, post.headers.allow, post.json().errorType], [405, 'GET, PUT', 'MethodNotAllowed']);
  });

  await t.test('the nonce proves the revision without a call', async () => {
    for (const target of ['/a', '/none', '/']) {
      const r = await p.request(target, { method: 'POST', headers: { 'x-faas-nonce': 'n-1' } });
      assert.deepStrictEqual([r.status, r.text, r.headers['x-faas-nonce'], r.headers['x-faas-revision'], r.headers['x-faas-image'], r.headers['x-faas-key']],
        [200, '', 'n-1', 'r-1', 'reg/i@sha256:0', 'key-1']);
    }
    assert.strictEqual((await p.request('/a', { headers: { 'x-faas-nonce': 'a b' } })).status, 400);
    assert.ok(!p.lines.some((l) => l.msg.startsWith('one')), 'the function was called');
  });

  await t.test('one line per request, and console.* as lines with the request', async () => {
    await p.request('/a?secret=1', { headers: { 'x-request-id': 'log-1' } });
    const access = await p.line((l) => l.msg === 'request' && l.requestId === 'log-1');
    assert.strictEqual(typeof access.ms, 'number');
    assert.ok(!Number.isNaN(Date.parse(access.ts)));
    delete access.ms;
    delete access.ts;
    assert.deepStrictEqual(access, { level: 'info', msg: 'request', requestId: 'log-1', function: 'a', revision: 'r-1', route: '/a', method: 'GET', status: 200, bytes: 1 });
    const own = p.lines.filter((l) => l.requestId === 'log-1' && l.msg !== 'request');
    assert.deepStrictEqual(own.map((l) => [l.level, l.msg.split('\n')[0], l.function]), [['info', 'one { two: 2 }', 'a'], ['error', 'Error: logged', 'a'], ['debug', 'd', 'a'], ['warn', 'w', 'a']]);
    assert.ok(!p.stdout.includes('secret'), 'the query is not logged');
    await p.request('/health/readiness');
    assert.ok(!p.lines.some((l) => (l.route || '').includes('health')));
    assert.ok(!p.lines.some((l) => l.raw), 'every line is JSON');
  });

  await t.test('what nobody caught costs its own request only', async () => {
    for (const [name, type, message] of [
      ['exits', 'ProcessExitRefused', /process\.exit\(3\)/], ['later', 'ProcessExitRefused', /process\.exit\(4\)/], ['kills', 'ProcessExitRefused', /process\.kill/],
      ['uncaught', 'TypeError', /from a timer/], ['unhandled', 'Error', /forgotten/],
    ]) {
      const r = await p.request(`/${name}`, { headers: { 'x-request-id': `u-${name}` } });
      assert.deepStrictEqual([r.status, r.json().errorType], [500, type], name);
      assert.match(r.json().errorMessage, message);
      const line = await p.line((l) => l.requestId === `u-${name}` && l.level === 'error' && l.stack);
      assert.strictEqual(line.function, name);
    }
    assert.strictEqual((await p.request('/answered')).text, 'answered');
    await p.line((l) => l.msg === 'uncaught exception: after the answer');
    assert.strictEqual((await p.request('/b')).text, 'b');
  });

  await t.test('time-outs: 504, the signal fires, the next request is served', async () => {
    const r = await p.request('/slow', { headers: { 'x-request-id': 's' } });
    assert.deepStrictEqual([r.status, r.json()], [504, { errorType: 'Timeout', errorMessage: 'the function did not answer within 30 ms', requestId: 's' }]);
    await p.line((l) => l.msg === 'aborted' && l.requestId === 's');
    assert.strictEqual((await p.line((l) => l.msg === 'request' && l.requestId === 's')).status, 504);
  });

  await t.test('a client that leaves is logged as 499 and aborts the call', async () => {
    const req = http.get({ port: p.port, path: '/slower', headers: { 'x-request-id': 'gone' } });
    req.on('error', () => {});
    await p.line((l) => l.msg === 'in slow' && l.requestId === 'gone');
    req.destroy();
    await p.line((l) => l.msg === 'aborted' && l.requestId === 'gone');
    assert.strictEqual((await p.line((l) => l.msg === 'request' && l.requestId === 'gone')).status, 499);
  });

  await t.test('bodies beyond the limit', async () => {
    assert.strictEqual((await p.request('/sized', { body: 'x'.repeat(1000) })).text, '1000');
    const declared = await p.request('/sized', { body: 'x'.repeat(1001) });
    assert.deepStrictEqual([declared.status, declared.json().errorType], [413, 'PayloadTooLarge']);
    const chunked = await p.request('/sized', { body: 'x'.repeat(200000), headers: { 'transfer-encoding': 'chunked' } });
    assert.strictEqual(chunked.status, 413);
  });

  await t.test('a body that never comes is the client\'s fault', async () => {
    const all = await raw(p.port, 'POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab');
    assert.match(all, /^HTTP\/1\.1 408 /);
    assert.match(all, /RequestTimeout/);
  });

  await t.test('what is not HTTP', async () => {
    for (const bytes of ['GARBAGE\r\n\r\n', 'GET / HTTP/9.9\r\n\r\n', 'GET /a HTTP/1.1\r\nbad header\r\n\r\n', 'GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n', '\x16\x03\x01\x02\x00\x01']) {
      assert.match(await raw(p.port, Buffer.from(bytes, 'latin1')), /^HTTP\/1\.1 400 Bad Request\r\n/, JSON.stringify(bytes));
    }
    assert.match(await raw(p.port, `GET /a HTTP/1.1\r\nx: ${'y'.repeat(70000)}\r\n\r\n`), /^HTTP\/1\.1 431 /);
    await raw(p.port, 'POST /sized HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc', { end: true });
    for (const target of ['/%', '/a%00b', '*', 'http://elsewhere/b', '//', '/?', '/../b']) {
      const head = (await raw(p.port, `GET ${target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n`)).split('\r\n')[0];
      assert.match(head, target === '/%' ? / 400 / : target === 'http://elsewhere/b' ? / 200 / : / 404 /, target);
    }
    assert.strictEqual((await p.request('/b')).text, 'b');
  });
});

test('concurrency is per function, and nobody waits for ever', async (t) => {
  const files = { 'index.js': `
    let running = 0, most = 0, open = [];
    exports.one = async (event, c) => { running++; most = Math.max(most, running); console.log('in one'); await new Promise((r) => open.push(r)); running--; return String(most); };
    exports.free = async () => { const n = open.length; open.splice(0).forEach((r) => r()); return String(n); };
    exports.stuck = async () => { console.log('in stuck'); await new Promise(() => {}); };
  ` };
  const p = await launch(t, { files, functions: [fn('one', { concurrency: 1 }), fn('free'), 
    fn('stuck', { concurrency: 1, routes: [{ path: '/stuck', timeoutMs: 60000 }, { path: '/brief', timeoutMs: 30 }] }), fn('over', { handler: 'index.stuck', concurrency: 1, timeoutMs: 30 })] });
  const free = async () => {
    while ((await p.request('/free')).text === '0');
  };
  const both = Promise.all([p.request('/one'), p.request('/one')]);
  await p.line((l) => l.msg === 'in one');
  await free();
  await free();
  assert.deepStrictEqual((await both).map((r) => r.text), ['1', '1']);
  // Who finds the slot taken waits for his own time-out.
  p.request('/stuck').catch(() => {}); // it ends with the process
  await p.line((l) => l.msg === 'in stuck' && l.function === 'stuck');
  const brief = await p.request('/brief');
  assert.deepStrictEqual([brief.status, brief.json().errorType], [503, 'Overloaded']);
  // A handler that never ends keeps its slot for one more time-out only.
  for (const id of ['over-1', 'over-2']) {
    const over = await p.request('/over', { headers: { 'x-request-id': id } });
    assert.deepStrictEqual([over.status, over.json().errorType], [504, 'Timeout']);
    await p.line((l) => l.msg === 'in stuck' && l.requestId === id);
    await p.line((l) => /its slot is given to others/.test(l.msg) && l.requestId === id);
  }
  assert.strictEqual(p.lines.filter((l) => l.msg === 'in stuck' && l.function === 'stuck').length, 1);
});
