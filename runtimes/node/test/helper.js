'use strict';

// Starts the adapter as the image does: another process, its own folder of
// code, the environment and nothing else.

const fs = require('fs');
const http = require('http');
const os = require('os');
const path = require('path');
const { spawn } = require('child_process');

const home = path.join(__dirname, '..');

/** Writes files into a new folder that goes away with the test. */
function folder(t, files) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'adapter-'));
  t.after(() => fs.rmSync(dir, { recursive: true, force: true }));
  for (const [name, text] of Object.entries(files)) {
    fs.mkdirSync(path.dirname(path.join(dir, name)), { recursive: true });
    fs.writeFileSync(path.join(dir, name), text);
  }
  return dir;
}

/** A row of the handler table with the usual values. */
function fn(name, more = {}) {
  return { name, handler: `index.${name}`, contract: 'event', routes: [{ path: `/${name}` }], ...more };
}

/**
 * Starts the adapter and waits until it says one of: ready, or its end.
 * @param {{files: object, functions?: object[], env?: object, unit?: any, main?: string, until?: string}} o
 */
async function launch(t, o) {
  const dir = folder(t, o.files);
  const unit = o.unit !== undefined ? o.unit : JSON.stringify({ name: 'main', functions: o.functions });
  const child = spawn(process.execPath, [path.join(o.main || home, 'main.js')], {
    cwd: dir,
    env: { PORT: '0', FAAS_UNIT: unit, ...o.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  const p = { child, dir, lines: [], stdout: '', stderr: '', port: 0, waiting: [] };
  const check = () => {
    p.waiting = p.waiting.filter((w) => !w());
  };
  lines(child.stdout, (line) => {
    p.stdout += line + '\n';
    try {
      p.lines.push(JSON.parse(line));
    } catch {
      p.lines.push({ raw: line });
    }
    const l = p.lines[p.lines.length - 1];
    if (l.msg === 'listening') {
      p.port = l.port;
    }
    check();
  });
  child.stderr.on('data', (b) => {
    p.stderr += b;
  });
  p.exit = new Promise((resolve) => {
    child.on('close', (code, signal) => {
      p.ended = { code, signal };
      check();
      resolve(p.ended);
    });
  });
  /** Waits for a log line; rejects when the process ends without it. */
  p.line = (want) => new Promise((resolve, reject) => {
    const look = () => {
      const found = p.lines.find(want);
      if (found) {
        resolve(found);
      } else if (p.ended) {
        reject(new Error(`the adapter ended (${JSON.stringify(p.ended)}) before the line came\n${p.stdout}${p.stderr}`));
      }
      return Boolean(found || p.ended);
    };
    if (!look()) {
      p.waiting.push(look);
    }
  });
  p.request = (target, options) => request(p.port, target, options);
  if (o.until !== 'exit') {
    await p.line((l) => l.msg === (o.until || 'ready'));
  }
  return p;
}

function lines(stream, each) {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (s) => {
    const parts = (rest + s).split('\n');
    rest = parts.pop();
    parts.forEach(each);
  });
  stream.on('end', () => rest && each(rest));
}

/**
 * One request. Resolves with {status, headers, text, body}; json() parses it.
 * @param {{method?: string, headers?: object, body?: string | Buffer, agent?: http.Agent}} options
 */
function request(port, target, { method, headers, body, agent } = {}) {
  return new Promise((resolve, reject) => {
    const req = http.request({ port, host: '127.0.0.1', path: target, method: method || (body === undefined ? 'GET' : 'POST'), headers, agent }, (res) => {
      const chunks = [];
      res.on('data', (c) => chunks.push(c));
      res.on('error', reject);
      res.on('end', () => {
        const all = Buffer.concat(chunks);
        resolve({ status: res.statusCode, headers: res.headers, rawHeaders: res.rawHeaders, body: all, text: all.toString(), json: () => JSON.parse(all.toString()) });
      });
    });
    req.on('error', reject);
    req.end(body);
  });
}

module.exports = { folder, fn, launch, request, home };
