'use strict';

const test = require('node:test');
const assert = require('node:assert');
const http = require('http');
const net = require('net');
const { fn, launch } = require('./helper');

function get(port, path) {
  return new Promise((resolve, reject) => {
    http.get({ port, path, host: '127.0.0.1' }, (res) => {
      let body = '';
      res.on('data', (b) => (body += b));
      res.on('end', () => resolve({ status: res.statusCode, body }));
    }).on('error', reject);
  });
}

const files = { 'index.js': `
  exports.a = async () => 'a';
  exports.b = async () => { throw new Error('no'); };
` };

test('counts by function, on a port that routes do not lead to', async (t) => {
  const p = await launch(t, { files, functions: [fn('a'), fn('b')], env: { FAAS_METRICS_PORT: '0', FAAS_HOST: '127.0.0.1' } });
  const { port } = await p.line((l) => l.msg === 'metrics');
  for (const path of ['/none', '/metrics', '/health/readiness']) {
    await p.request(path);
  }
  await p.request('/a', { headers: { 'x-faas-nonce': 'n' } });
  for (const [i, path] of ['/a', '/a', '/b'].entries()) {
    await p.request(path, { headers: { 'x-request-id': `counted-${i}` } });
    // An answer can overtake the count, which stands before its line.
    await p.line((l) => l.msg === 'request' && l.requestId === `counted-${i}`);
  }
  const { status, body } = await get(port, '/metrics');
  assert.strictEqual(status, 200);
  assert.match(body, /^faas_requests_total\{function="a",code="2xx"\} 2$/m);
  assert.match(body, /^faas_requests_total\{function="b",code="5xx"\} 1$/m);
  assert.match(body, /^faas_request_duration_seconds_bucket\{function="a",le="\+Inf"\} 2$/m);
  assert.match(body, /^faas_request_duration_seconds_bucket\{function="a",le="60"\} 2$/m);
  assert.match(body, /^faas_request_duration_seconds_count\{function="b"\} 1$/m);
  assert.strictEqual((body.match(/code=/g) || []).length, 2);
  assert.strictEqual((await get(port, '/a')).status, 404);
  assert.strictEqual((await p.request('/metrics')).status, 404);
});

test('a taken port costs the metrics, not the unit', async (t) => {
  const s = net.createServer();
  await new Promise((resolve) => s.listen(0, '127.0.0.1', resolve));
  t.after(() => s.close());
  const p = await launch(t, { files, functions: [fn('a')], env: { FAAS_METRICS_PORT: String(s.address().port), FAAS_HOST: '127.0.0.1' } });
  await p.line((l) => l.level === 'warn' && /no metrics on port/.test(l.msg));
  assert.strictEqual((await p.request('/a')).status, 200);
});
