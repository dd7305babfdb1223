'use strict';

const test = require('node:test');
const assert = require('node:assert');
const { fn, launch } = require('./helper');

const files = { 'index.js': `
  exports.echo = (req, res) => res.json({ method: req.method, path: req.path, query: req.query, params: req.params, body: req.body,
    raw: req.rawBody.toString('latin1'), ip: req.ip, clientIP: req.clientIP, queries: req.queries, a: req.get('X-A'), host: req.hostname, protocol: req.protocol });
  exports.stream = (req, res) => { let s = ''; req.setEncoding('utf8'); req.on('data', (c) => s += c); req.on('end', () => res.send({ got: s })); };
  exports.pipe = (req, res) => req.pipe(res);
  exports.html = (req, res) => res.send('<b>');
  exports.bytes = (req, res) => { res.status(201).set('x-a', '1').send(Buffer.from([1, 2])); };
  exports.typed = (req, res) => { res.set({ 'x-b': '2' }); res.type('text').send('t'); };
  exports.empty = (req, res) => res.status(204).send();
  exports.notFound = (req, res) => res.sendStatus(404);
  exports.moved = (req, res) => res.redirect('/a b/é');
  exports.moved301 = (req, res) => res.redirect(301, '/x%20y');
  exports.fc2 = (req, res, context) => { res.setStatusCode(202); res.setHeader('x-c', context.requestId); res.setHeader('x-d', '1'); res.deleteHeader('x-d'); res.send('ok'); };
  exports.node = async (req, res) => { res.writeHead(200, { 'content-type': 'text/plain' }); res.write('a'); await null; res.end('b'); };
  exports.throws = async (req, res) => { res.status(200).set('x-half', '1').type('html'); throw new Error('boom'); };
  exports.afterwards = async (req, res) => { res.send('complete'); throw new Error('too late'); };
  exports.midway = async (req, res) => { res.write('half'); await new Promise((r) => setTimeout(r, 20)); throw new Error('midway'); };
  exports.twice = (req, res) => { res.json(1); res.json(2); };
  exports.assign = (req, res) => { req.body = 'mine'; req.user = 'u'; res.locals.x = 1; res.json([req.body, req.user, res.locals.x]); };
` };
const names = ['stream', 'pipe', 'html', 'bytes', 'typed', 'empty', 'notFound', 'moved', 'moved301', 'fc2', 'node', 'throws', 'afterwards', 'midway', 'twice', 'assign'];
const functions = [fn('echo', { contract: 'http', routes: [{ path: '/echo/[id]/*' }] }), ...names.map((n) => fn(n, { contract: 'http' }))];

test('the http contract', async (t) => {
  const p = await launch(t, { files, functions });

  await t.test('request', async () => {
    const r = await p.request('/echo/7/x/y?a=1&a=2', { body: '{"n":1}', headers: { 'content-type': 'application/json', 'x-a': 'b', 'x-forwarded-for': '10.1.1.1', 'x-forwarded-proto': 'https', host: 'h.example:80' } });
    assert.deepStrictEqual(r.json(), {
      method: 'POST', path: '/echo/7/x/y', query: { a: ['1', '2'] }, params: { 0: 'x/y', id: '7', proxy: 'x/y' }, body: { n: 1 },
      raw: '{"n":1}', ip: '10.1.1.1', clientIP: '10.1.1.1', queries: { a: ['1', '2'] }, a: 'b', host: 'h.example', protocol: 'https',
    });
    const body = async (text, type) => (await p.request('/echo/1/2', { body: text, headers: type ? { 'content-type': type } : {} })).json().body;
    assert.deepStrictEqual(await body('a=1&b=x%20y', 'application/x-www-form-urlencoded'), { a: '1', b: 'x y' });
    assert.strictEqual(await body('hi', 'text/plain'), 'hi');
    assert.deepStrictEqual(await body('', 'application/json'), {});
    assert.deepStrictEqual(await body('A', ''), { type: 'Buffer', data: [65] });
    const broken = await p.request('/echo/1/2', { body: '{', headers: { 'content-type': 'application/json' } });
    assert.deepStrictEqual([broken.status, broken.json().errorType], [400, 'BadRequest']);
    assert.deepStrictEqual((await p.request('/assign', { body: 'x' })).json(), ['mine', 'u', 1]);
  });

  await t.test('the body can still be read as a stream', async () => {
    const big = 'x'.repeat(300000);
    assert.deepStrictEqual((await p.request('/stream', { body: big })).json(), { got: big });
    assert.deepStrictEqual((await p.request('/stream')).json(), { got: '' });
    assert.strictEqual((await p.request('/pipe', { body: big })).text, big);
  });

  await t.test('response', async () => {
    const got = async (name) => {
      const r = await p.request(`/${name}`, { headers: { 'x-request-id': 'i' } });
      return [r.status, r.headers['content-type'], r.text];
    };
    assert.deepStrictEqual(await got('html'), [200, 'text/html; charset=utf-8', '<b>']);
    assert.deepStrictEqual(await got('bytes'), [201, 'application/octet-stream', '\x01\x02']);
    assert.deepStrictEqual(await got('typed'), [200, 'text/plain; charset=utf-8', 't']);
    assert.deepStrictEqual(await got('empty'), [204, undefined, '']);
    assert.deepStrictEqual(await got('notFound'), [404, 'text/plain; charset=utf-8', 'Not Found']);
    assert.deepStrictEqual(await got('node'), [200, 'text/plain', 'ab']);
    assert.strictEqual((await p.request('/moved')).headers.location, '/a%20b/%C3%A9');
    const m = await p.request('/moved301');
    assert.deepStrictEqual([m.status, m.headers.location], [301, '/x%20y']);
    const fc = await p.request('/fc2', { headers: { 'x-request-id': 'i' } });
    assert.deepStrictEqual([fc.status, fc.headers['x-c'], fc.headers['x-d'], fc.text], [202, 'i', undefined, 'ok']);
    const head = await p.request('/html', { method: 'HEAD' });
    assert.deepStrictEqual([head.status, head.headers['content-length'], head.text], [200, '3', '']);
  });

  await t.test('errors', async () => {
    const r = await p.request('/throws');
    assert.deepStrictEqual([r.status, r.json().errorMessage, r.headers['x-half'], r.headers['content-type']], [500, 'boom', undefined, 'application/json; charset=utf-8']);
    // What was complete arrives; the error is in the log.
    assert.strictEqual((await p.request('/afterwards')).text, 'complete');
    await p.line((l) => l.msg === 'too late (after the request was answered)');
    assert.strictEqual((await p.request('/twice')).text, '1');
    // What was not complete must not look complete.
    await assert.rejects(p.request('/midway'), { code: 'ECONNRESET' });
    const line = await p.line((l) => l.msg === 'request' && l.function === 'midway');
    assert.strictEqual(line.status, 499);
  });
});
