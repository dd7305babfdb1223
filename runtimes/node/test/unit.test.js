'use strict';

const test = require('node:test');
const assert = require('node:assert');
const path = require('path');
const { parseUnit, splitHandler } = require('../lib/unit');
const { Router, routeKey } = require('../lib/router');
const { Limiter } = require('../lib/limit');
const { describe } = require('../lib/errors');
const { reply } = require('../lib/event');

test('handlers split as on the Go side', () => {
  for (const c of require(path.join(__dirname, '../../testdata/handlers.json'))) {
    if (c.error) {
      assert.throws(() => splitHandler(c.handler), { name: 'StartError' }, JSON.stringify(c.handler));
    } else {
      assert.deepStrictEqual(splitHandler(c.handler), { files: c.files, exportName: c.export });
    }
  }
});

test('the table: every problem at once, by its field', () => {
  assert.throws(() => parseUnit(undefined), /FAAS_UNIT is not set/);
  assert.throws(() => parseUnit('{'), /FAAS_UNIT is not JSON/);
  assert.throws(() => parseUnit('null'), /must be a JSON object/);
  assert.throws(() => parseUnit('{"name":"x","functions":[]}'), /at least one function/);
  const bad = {
    name: 'main',
    functions: [
      { name: 'a', handler: 'index', contract: 'web', timeoutMs: -1, environment: { X: '1', PORT: '1' } },
      { name: 'a', handler: '../index.h', concurrency: 1.5, environment: { X: '2' }, routes: [{ path: '', methods: ['GET /'] }] },
      7,
    ],
  };
  assert.throws(() => parseUnit(JSON.stringify(bad)), (err) => {
    for (const want of [
      'functions[0].contract: "web" is not a contract of this adapter; it knows event, http',
      'functions[0].handler: "index" is not of the form path/file.export',
      'functions[0].timeoutMs: must be a whole number',
      'functions[0].environment.PORT: is a variable of the platform',
      'functions[1].name: "a" is there twice',
      'functions[1].handler: "../index.h" must be a path below',
      'functions[1].concurrency: must be a whole number',
      'functions[1].routes[0].path: must be a string',
      'functions[1].routes[0].methods: must be a list',
      'functions[2]: must be an object',
      'environment.X: they differ',
    ]) {
      assert.ok(err.message.includes(want), `${want}\nis missing in\n${err.message}`);
    }
    return true;
  });
  const unit = parseUnit('{"name":"m","later":1,"functions":[{"name":"a","handler":"i.h","routes":[{"path":"/","methods":["any"]},{"path":"/x","methods":["get"],"timeoutMs":5}]}]}');
  assert.strictEqual(unit.functions[0].contract, 'event');
  assert.deepStrictEqual(unit.functions[0].routes, [{ path: '/', methods: [], timeoutMs: 60000 }, { path: '/x', methods: ['GET'], timeoutMs: 5 }]);
});

function router(table) {
  return new Router(Object.entries(table).map(([name, list]) => ({
    name,
    routes: list.map((r) => {
      const [methods, p] = r.includes(' ') ? r.split(' ') : ['', r];
      return { path: p, methods: methods ? methods.split(',') : [], timeoutMs: 1 };
    }),
  })));
}

test('routes: the more literal wins', () => {
  const r = router({
    root: ['/'], all: ['/a/*'], id: ['/a/[id]'], me: ['GET /a/me'], sub: ['/a/[id]/b'], deep: ['/a/[id]/[x]'], post: ['POST /a/me'], dot: ['/x.y/z'],
  });
  const find = (m, p) => {
    const f = r.find(m, p);
    return `${f.fn.name} ${JSON.stringify(f.params)}`;
  };
  for (const [method, p, want] of [
    ['GET', '/', 'root {}'],
    ['GET', '/a/me', 'me {}'],
    ['HEAD', '/a/me', 'me {}'],
    ['POST', '/a/me/', 'post {}'],
    ['PUT', '/a/me', 'id {"id":"me"}'],
    ['GET', '/a/7', 'id {"id":"7"}'],
    ['GET', '/a/x%2Fy%20', 'id {"id":"x/y "}'],
    ['GET', '/a/7/b', 'sub {"id":"7"}'],
    ['GET', '/a/7/c', 'deep {"id":"7","x":"c"}'],
    ['GET', '/a/7/c/d', 'all {"proxy":"7/c/d"}'],
    ['GET', '/a//c', 'all {"proxy":"/c"}'],
    ['GET', '/x.y/z', 'dot {}'],
  ]) {
    assert.strictEqual(find(method, p), want, `${method} ${p}`);
  }
  for (const p of ['/a', '/a/', '/A/me', '/nope', '//', '/x/y/z']) {
    assert.throws(() => r.find('GET', p), { statusCode: 404 }, p);
  }
  assert.throws(() => r.find('GET', '/a/%zz'), { statusCode: 400 });
  const only = router({ a: ['GET,POST /x'], b: ['DELETE /x'] });
  assert.throws(() => only.find('PUT', '/x'), (err) => err.statusCode === 405 && err.headers.allow === 'DELETE, GET, POST');
});

test('routes: no path breaks the router', () => {
  const r = router({ a: ['/a/[id]/*'], b: ['/[x]'], c: ['/'] });
  const parts = ['/', 'a', '%', '%2F', '%00', '%ff', '..', '.', '*', '[id]', '__proto__', 'constructor', '\u00e9', ' ', ';', '\\'];
  let seed = 1;
  for (let i = 0; i < 5000; i++) {
    let path = '/';
    for (let n = 0; n < 6; n++) {
      seed = (seed * 48271) % 0x7fffffff;
      path += parts[seed % parts.length];
    }
    try {
      r.find('GET', path);
    } catch (err) {
      assert.ok([400, 404].includes(err.statusCode), `${path}: ${err.stack}`);
    }
  }
});

test('routes: what can not be meant is refused', () => {
  for (const bad of [{ a: ['x'] }, { a: ['/a/*/b'] }, { a: ['/a/[id'] }, { a: ['/a/x[id]'] }, { a: ['/[a]/[a]'] }, { a: ['/a?b'] }, { a: ['/a/[x]'], b: ['/a/[y]'] }, { a: ['GET /a'], b: ['POST,GET /a/'] }]) {
    assert.throws(() => router(bad), { name: 'StartError' }, JSON.stringify(bad));
  }
  assert.throws(() => router({ a: ['GET /a'], b: ['GET /a'] }), /functions a and b both claim GET \/a/);
});

test('routeKey is written as API Gateway does', () => {
  assert.strictEqual(routeKey({ path: '/a/[id]', methods: ['GET'] }), 'GET /a/{id}');
  assert.strictEqual(routeKey({ path: '/a/*', methods: [] }), 'ANY /a/{proxy+}');
});

test('the limiter hands slots over in order, and to nobody who left', async () => {
  const l = new Limiter(1);
  const never = new AbortController();
  const gone = new AbortController();
  const first = await l.acquire(never.signal);
  const order = [];
  const second = l.acquire(never.signal).then((r) => { order.push(2); return r; });
  const left = l.acquire(gone.signal);
  const third = l.acquire(never.signal).then((r) => { order.push(3); return r; });
  gone.abort();
  await assert.rejects(left, { statusCode: 503, name: 'Overloaded' });
  first();
  first(); // harmless
  (await second)();
  (await third)();
  assert.deepStrictEqual(order, [2, 3]);
  assert.strictEqual(l.running, 0);
  await l.acquire(never.signal);
  l.maxWaiting = 0;
  await assert.rejects(l.acquire(never.signal), { statusCode: 503 });
});

test('describe survives anything that can be thrown', () => {
  const hostile = { get name() { throw new Error('no'); } };
  for (const thrown of [undefined, null, 0, 'text', Symbol('s'), {}, [], hostile, Object.create(null), new Proxy({}, { get() { throw new Error('no'); } })]) {
    const d = describe(thrown);
    assert.strictEqual(d.status, 500);
    assert.strictEqual(typeof d.message, 'string');
  }
  assert.strictEqual(describe('text').message, 'text');
  assert.strictEqual(describe(Object.assign(new Error('x'), { statusCode: 418 })).status, 418);
  assert.strictEqual(describe(Object.assign(new Error('x'), { statusCode: 200 })).status, 500);
});

test('replies', () => {
  const show = (v) => {
    const r = reply(v);
    return [r.status, Object.fromEntries(r.headers), r.body.toString('latin1')];
  };
  const plain = { 'content-type': 'text/plain; charset=utf-8' };
  const json = { 'content-type': 'application/json' };
  for (const [value, want] of [
    [undefined, [200, {}, '']],
    [null, [200, {}, '']],
    ['x', [200, plain, 'x']],
    [7, [200, plain, '7']],
    [true, [200, plain, 'true']],
    [{ a: 1 }, [200, json, '{"a":1}']],
    [[1], [200, json, '[1]']],
    [Buffer.from([255, 0]), [200, { 'content-type': 'application/octet-stream' }, '\xff\x00']],
    [{ statusCode: 204 }, [204, {}, '']],
    [{ statusCode: '201', body: { a: 1 } }, [201, json, '{"a":1}']],
    [{ statusCode: 200, headers: { 'Content-Type': 'text/css', 'X-N': 1, Connection: 'close', skip: null }, body: 'a' }, [200, { 'content-type': 'text/css', 'x-n': '1' }, 'a']],
    [{ statusCode: 200, isBase64Encoded: true, body: '/wA=' }, [200, { 'content-type': 'application/octet-stream' }, '\xff\x00']],
    [{ statusCode: 200, cookies: ['a=1', 'b=2'] }, [200, { 'set-cookie': ['a=1', 'b=2'] }, '']],
    [{ statusCode: 200, multiValueHeaders: { 'X-A': ['1', '2'] } }, [200, { 'x-a': ['1', '2'] }, '']],
  ]) {
    assert.deepStrictEqual(show(value), want);
  }
  const loop = {};
  loop.loop = loop;
  for (const bad of [{ statusCode: 99 }, { statusCode: 101 }, { statusCode: 600 }, { statusCode: 'ok' }, { statusCode: {} }, { statusCode: 200, headers: 'x' }, { statusCode: 200, headers: [] },
    { statusCode: 200, isBase64Encoded: true, body: {} }, loop, { n: 1n }]) {
    assert.throws(() => reply(bad), { name: 'BadReply' });
  }
});
