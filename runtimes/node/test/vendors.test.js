'use strict';

// Handlers written as each cloud's own hello world, unmodified, give the same
// bytes alone and in one process with all the others. A new sample needs a
// file in vendors/ and a row here.

const test = require('node:test');
const assert = require('node:assert');
const fs = require('fs');
const path = require('path');
const { fn, launch } = require('./helper');

const dir = path.join(__dirname, 'vendors');
const json = { 'content-type': 'application/json' };
const samples = {
  'lambda.js': { handler: 'lambda.handler', query: '?name=a', want: [200, 'application/json', '{"message":"Hello a","method":"GET","request":"id"}'] },
  'lambda-esm.mjs': { handler: 'lambda-esm.handler', want: [200, 'text/plain; charset=utf-8', 'Hello from /lambda-esm'] },
  'lambda-callback.js': { handler: 'lambda-callback.handler', body: '{"a":1,"b":2}', headers: json, want: [200, 'text/plain; charset=utf-8', '{"sum":3}'] },
  'fc.js': { handler: 'fc.handler', query: '?name=b', want: [200, 'text/plain', 'GET b id'] },
  'fc-callback.js': { handler: 'fc-callback.handler', query: '?name=b', want: [200, 'text/plain; charset=utf-8', 'hello b'] },
  'fc2-http.js': { handler: 'fc2-http.handler', contract: 'http', query: '?name=c', body: 'four', want: [200, 'application/json', '{"path":"/fc2-http","name":"c","length":4,"request":"id"}'] },
  'scf.js': { handler: 'scf.main_handler', headers: { 'x-title': 'T' }, want: [200, 'text/html', '<h1>T</h1>'] },
  'functiongraph.js': { handler: 'functiongraph.handler', route: '/functiongraph/[id]', target: '/functiongraph/7', want: [200, 'application/json', '{"id":"7"}'] },
  'google.js': { handler: 'google.helloHttp', contract: 'http', body: '{"name":"d"}', headers: json, want: [200, 'text/html; charset=utf-8', 'Hello d!'] },
  'vercel.js': { handler: 'vercel.default', contract: 'http', query: '?name=e', body: '{"n":1}', headers: json, want: [201, 'application/json; charset=utf-8', '{"hello":"e","body":{"n":1}}'] },
};

const row = ([file, s]) => {
  const name = file.split('.')[0];
  return fn(name, { handler: s.handler, contract: s.contract || 'event', routes: [{ path: s.route || `/${name}` }] });
};

async function ask(p, [file, s]) {
  const target = (s.target || `/${file.split('.')[0]}`) + (s.query || '');
  const r = await p.request(target, { body: s.body, headers: { ...s.headers, 'x-request-id': 'id' } });
  const headers = r.rawHeaders.join('\n').replace(/Date\n.*/, '');
  return { got: [r.status, r.headers['content-type'], r.text], bytes: `${r.status}\n${headers}\n\n${r.body.toString('latin1')}` };
}

test('vendors\' samples answer the same alone and aggregated', async (t) => {
  const files = Object.fromEntries(fs.readdirSync(dir).map((f) => [f, fs.readFileSync(path.join(dir, f), 'utf8')]));
  assert.deepStrictEqual(Object.keys(files).sort(), Object.keys(samples).sort(), 'every sample has a row, every row a sample');
  const entries = Object.entries(samples);
  const together = await launch(t, { files, functions: entries.map(row) });
  await Promise.all(entries.map(([file, s]) => t.test(file, async (t) => {
    const alone = await launch(t, { files: { [file]: files[file] }, functions: [row([file, s])] });
    const a = await ask(alone, [file, s]);
    assert.deepStrictEqual(a.got, s.want);
    assert.strictEqual((await ask(together, [file, s])).bytes, a.bytes);
  })));
});
