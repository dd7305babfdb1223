'use strict';

const test = require('node:test');
const assert = require('node:assert');
const { fn, launch } = require('./helper');

test('the event serves handlers of both clouds', async (t) => {
  const files = { 'index.js': `
    exports.event = async (event) => ({ statusCode: 200, headers: { 'content-type': 'application/json' }, body: JSON.stringify(event) });
    exports.fc = async (event, context) => { const e = JSON.parse(event.toString()); return { path: e.rawPath, q: e.queryParameters, same: JSON.parse(event).rawPath, name: context.function.name }; };
  ` };
  const p = await launch(t, { files, functions: [fn('event', { routes: [{ path: '/e/[id]/*', methods: ['GET', 'POST'] }, { path: '/only', methods: ['get'] }] }), fn('fc')] });
  const r = await p.request('/e/7%2F8/x/y?a=1&a=2&b=%20', { method: 'POST', headers: { cookie: 'u=1; v=2', 'x-request-id': 'id-1', 'X-A': 'b', 'user-agent': 'test', 'x-forwarded-for': '10.1.1.1, 10.2.2.2', 'content-type': 'application/json', host: 'h.example' }, body: '{"é":1}' });
  const e = r.json();
  assert.strictEqual(r.headers['x-request-id'], 'id-1');
  assert.ok(Math.abs(Date.now() - e.requestContext.timeEpoch) < 60e3);
  assert.strictEqual(Date.parse(e.requestContext.time), e.requestContext.timeEpoch);
  delete e.requestContext.timeEpoch;
  delete e.requestContext.time;
  assert.deepStrictEqual(e, {
    version: '2.0',
    routeKey: 'ANY /e/{id}/{proxy+}',
    rawPath: '/e/7%2F8/x/y',
    rawQueryString: 'a=1&a=2&b=%20',
    cookies: ['u=1', 'v=2'],
    headers: { cookie: 'u=1; v=2', 'x-request-id': 'id-1', 'x-a': 'b', 'user-agent': 'test', 'x-forwarded-for': '10.1.1.1, 10.2.2.2', 'content-type': 'application/json', host: 'h.example', connection: e.headers.connection, 'content-length': '8' },
    queryStringParameters: { a: '1,2', b: ' ' },
    queryParameters: { a: '1,2', b: ' ' },
    pathParameters: { id: '7/8', proxy: 'x/y' },
    body: '{"é":1}',
    isBase64Encoded: false,
    requestContext: {
      domainName: 'h.example', requestId: 'id-1', routeKey: 'ANY /e/{id}/{proxy+}', stage: '$default',
      http: { method: 'POST', path: '/e/7%2F8/x/y', protocol: 'HTTP/1.1', sourceIp: '10.1.1.1', userAgent: 'test' },
    },
  });
  assert.deepStrictEqual((await p.request('/fc?x=1')).json(), { path: '/fc', q: { x: '1' }, same: '/fc', name: 'fc' });

  const small = (await p.request('/only')).json();
  assert.deepStrictEqual([small.routeKey, small.body, small.isBase64Encoded, small.cookies, small.queryStringParameters], ['GET /only', '', false, [], {}]);
  const body = async (bytes, headers) => {
    const b = (await p.request('/e/1/2', { body: Buffer.from(bytes), headers })).json();
    return [b.body, b.isBase64Encoded];
  };
  assert.deepStrictEqual(await body([0xff, 0xfe], { 'content-type': 'text/plain' }), ['//4=', true]);
  assert.deepStrictEqual(await body([65], { 'content-type': 'image/png' }), ['QQ==', true]);
  assert.deepStrictEqual(await body([65], { 'content-type': 'application/vnd.x+json; charset=utf-8' }), ['A', false]);
  assert.deepStrictEqual(await body([65], { 'content-type': 'application/json', 'content-encoding': 'gzip' }), ['QQ==', true]);
  assert.deepStrictEqual(await body([0xef, 0xbb, 0xbf, 65], {}), ['\ufeffA', false]);
  const id = (await p.request('/fc', { headers: { 'x-request-id': 'not an id\t' } })).headers['x-request-id'];
  assert.match(id, /^[0-9a-f-]{36}$/);
});

test('the three ways to answer, and to fail', async (t) => {
  const files = { 'index.js': `
    exports.callback = (event, context, cb) => { setTimeout(() => cb(null, 'called'), 1); };
    exports.timer = (event, context, cb) => setTimeout(() => cb(null, { statusCode: 202, body: 'later' }), 1);
    exports.rest = (...args) => { args[2](null, 'rest'); };
    exports.plain = () => 'plain';
    exports.nothing = () => {};
    exports.thenable = () => ({ then: (resolve) => resolve({ ok: true }) });
    exports.cbError = (event, context, cb) => cb(Object.assign(new Error('no such order'), { statusCode: 404 }));
    exports.cbText = (event, context, cb) => cb('just text');
    exports.throws = () => { throw new TypeError('boom'); };
    exports.rejects = async () => { throw undefined; };
    exports.status = async () => { throw Object.assign(new Error('tea'), { statusCode: 418, name: 'Teapot' }); };
    exports.header = async () => ({ statusCode: 200, headers: { 'x-ok': '1', 'x-bad': 'a\\nb' }, body: 'x' });
    exports.badStatus = async () => ({ statusCode: 1 });
    exports.cookies = async () => ({ statusCode: 200, cookies: ['a=1', 'b=2'], headers: { 'content-length': '999' }, body: 'four' });
  ` };
  const names = ['callback', 'timer', 'rest', 'plain', 'nothing', 'thenable', 'cbError', 'cbText', 'throws', 'rejects', 'status', 'header', 'badStatus', 'cookies'];
  const p = await launch(t, { files, functions: names.map((n) => fn(n)) });
  const got = async (name) => {
    const r = await p.request(`/${name}`, { headers: { 'x-request-id': 'i' } });
    return [r.status, r.text];
  };
  assert.deepStrictEqual(await got('callback'), [200, 'called']);
  assert.deepStrictEqual(await got('timer'), [202, 'later']);
  assert.deepStrictEqual(await got('rest'), [200, 'rest']);
  assert.deepStrictEqual(await got('plain'), [200, 'plain']);
  assert.deepStrictEqual(await got('nothing'), [200, '']);
  assert.deepStrictEqual(await got('thenable'), [200, '{"ok":true}']);
  const error = (type, message) => JSON.stringify({ errorType: type, errorMessage: message, requestId: 'i' });
  assert.deepStrictEqual(await got('cbError'), [404, error('Error', 'no such order')]);
  assert.deepStrictEqual(await got('cbText'), [500, error('Error', 'just text')]);
  assert.deepStrictEqual(await got('throws'), [500, error('TypeError', 'boom')]);
  assert.deepStrictEqual(await got('rejects'), [500, error('Error', 'undefined')]);
  assert.deepStrictEqual(await got('status'), [418, error('Teapot', 'tea')]);
  assert.deepStrictEqual(await got('badStatus'), [500, error('BadReply', "the handler's reply can't be sent: statusCode 1 is not a number from 200 to 599")]);
  const header = await p.request('/header');
  assert.deepStrictEqual([header.status, header.json().errorType, header.headers['x-ok']], [500, 'BadReply', undefined]);
  const cookies = await p.request('/cookies');
  assert.deepStrictEqual([cookies.headers['set-cookie'], cookies.text], [['a=1', 'b=2'], 'four']);

  // The stack is in the log, with the request, and not in the answer.
  const log = await p.line((l) => l.msg === 'boom');
  assert.deepStrictEqual([log.level, log.function, log.requestId, log.errorType], ['error', 'throws', 'i', 'TypeError']);
  assert.match(log.stack, /index\.js:\d+/);
  assert.ok(!p.lines.some((l) => l.msg === 'no such order'), 'a 404 that the handler meant is not an error of ours');
});

test('what a handler gets as context', async (t) => {
  const files = { 'index.js': `
    exports.a = async (event, c) => { c.logger.warn('careful %d', 3, { order: 7, requestId: 'forged' }); return {
      ...JSON.parse(JSON.stringify(c)), remaining: c.getRemainingTimeInMillis(), aborted: c.signal.aborted }; };` };
  const functions = [fn('a', { timeoutMs: 60000, routes: [{ path: '/a', timeoutMs: 14500 }] })];
  const env = { K_REVISION: 'hello-main-1', K_SERVICE: 'hello-main', FAAS_IMAGE: 'r/i@sha256:1', FAAS_KEY: 'k1' };
  const p = await launch(t, { files, functions, env });
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  const c = (await p.request('/a', { headers: { traceparent, 'x-request-id': 'i' } })).json();
  assert.ok(c.remaining > 0 && c.remaining <= 14500);
  assert.ok(c.memoryLimitInMB > 0);
  assert.deepStrictEqual(
    [c.requestId, c.awsRequestId, c.functionName, c.functionVersion, c.invokedAlias, c.traceparent, c.aborted, c.function.timeout, c.service.name],
    ['i', 'i', 'a', 'hello-main-1', '', traceparent, false, 15, 'hello-main']);
  assert.deepStrictEqual(c.platform, { unit: 'main', revision: 'hello-main-1', image: 'r/i@sha256:1', key: 'k1', mark: '', route: '/a' });
  const line = await p.line((l) => l.msg === 'careful 3');
  assert.deepStrictEqual([line.level, line.requestId, line.function, line.revision, line.order], ['warn', 'i', 'a', 'hello-main-1', 7]);
  assert.strictEqual((await p.line((l) => l.msg === 'request')).traceId, traceparent.split('-')[1]);
  assert.strictEqual((await p.request('/a', { headers: { traceparent: 'junk' } })).json().traceparent, '');
});
