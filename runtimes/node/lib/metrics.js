'use strict';

// What the adapter counts of its functions, offered in Prometheus' text format
// on a port of its own. Routes lead to PORT alone, so nobody who calls a
// function reaches it; the platform asks through the cluster's API server.

const http = require('http');

/** Upper bounds in milliseconds: close together where limits of p99 usually lie. */
const bounds = [1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 7000, 10000, 15000, 20000, 30000, 60000];

class Metrics {
  constructor() {
    this.functions = new Map(); // name → {codes, buckets, count, sum}
  }

  /**
   * @param {string} fn the function's name; empty for what no function was asked
   * @param {number} status of the answer; 499 where the client left
   * @param {number} ms
   */
  count(fn, status, ms) {
    let f = this.functions.get(fn);
    if (!f) {
      f = { codes: new Map(), buckets: new Array(bounds.length).fill(0), count: 0, sum: 0 };
      this.functions.set(fn, f);
    }
    const code = `${Math.floor(status / 100)}xx`;
    f.codes.set(code, (f.codes.get(code) || 0) + 1);
    f.count++;
    f.sum += ms;
    const i = bounds.findIndex((b) => ms <= b);
    if (i >= 0) {
      f.buckets[i]++;
    }
  }

  /** Prometheus' text format, version 0.0.4. */
  text() {
    const requests = ['# HELP faas_requests_total Requests that ended, by the first digit of their status.', '# TYPE faas_requests_total counter'];
    const times = ['# HELP faas_request_duration_seconds Time from the headers of a request to the end of its answer.', '# TYPE faas_request_duration_seconds histogram'];
    for (const [name, f] of this.functions) {
      const label = `function="${escape(name)}"`;
      for (const [code, n] of f.codes) {
        requests.push(`faas_requests_total{${label},code="${code}"} ${n}`);
      }
      let sum = 0;
      bounds.forEach((b, i) => {
        sum += f.buckets[i];
        times.push(`faas_request_duration_seconds_bucket{${label},le="${b / 1000}"} ${sum}`);
      });
      times.push(`faas_request_duration_seconds_bucket{${label},le="+Inf"} ${f.count}`);
      times.push(`faas_request_duration_seconds_sum{${label}} ${f.sum / 1000}`);
      times.push(`faas_request_duration_seconds_count{${label}} ${f.count}`);
    }
    return [...requests, ...times].join('\n') + '\n';
  }

  /**
   * Answers GET /metrics on the port until the process ends, which it does not
   * hold up. A port that is taken costs the metrics, not the unit.
   * @returns {Promise<number>} the port; 0 when it could not be had
   */
  serve(port, host, logger) {
    const server = http.createServer((req, res) => {
      if (req.method !== 'GET' || req.url !== '/metrics') {
        res.writeHead(404).end();
        return;
      }
      res.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' }).end(this.text());
    });
    server.unref();
    return new Promise((resolve) => {
      server.once('error', (err) => {
        logger.write('warn', `no metrics on port ${port}: ${err.message}`);
        resolve(0);
      });
      server.listen({ port, host }, () => resolve(server.address().port));
    });
  }
}

function escape(s) {
  return s.replace(/[\\"]/g, '\\$&').replace(/\n/g, '\\n');
}

module.exports = { Metrics };
