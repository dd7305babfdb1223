'use strict';

// The http contract's request and response: Node's own objects plus the few
// members that handlers written for Express-shaped clouds use. Every request
// is made of these classes; handlers of the event contract never see them.

const http = require('http');
const querystring = require('querystring');
const { HttpError } = require('./errors');

const types = { json: 'application/json; charset=utf-8', html: 'text/html; charset=utf-8', text: 'text/plain; charset=utf-8', bin: 'application/octet-stream' };

const empty = Buffer.alloc(0);

class Request extends http.IncomingMessage {
  /** @type {Object<string, string>} what [id] and * in the route stood for; * is `0` and `proxy` */
  params = {};

  /** The body's bytes; empty when there was none. */
  rawBody = empty;

  get path() {
    return splitUrl(this.url).path;
  }

  get originalUrl() {
    return this.url;
  }

  /** The query; a name that is there twice gives a list. */
  get query() {
    return this.keep('query', { ...querystring.parse(splitUrl(this.url).query) });
  }

  set query(v) {
    this.keep('query', v);
  }

  /**
   * The body by its content type: JSON and forms parsed, text as a string,
   * the rest as a Buffer, {} without a body. Broken JSON throws a 400.
   */
  get body() {
    return this.keep('body', parseBody(this.rawBody, this.headers['content-type'] || ''));
  }

  set body(v) {
    this.keep('body', v);
  }

  get protocol() {
    return first(this.headers['x-forwarded-proto']) || 'http';
  }

  get hostname() {
    return (this.headers.host || '').replace(/:\d+$/, '');
  }

  get ip() {
    return clientIp(this);
  }

  get(name) {
    return this.headers[String(name).toLowerCase()];
  }

  header(name) {
    return this.get(name);
  }

  // Names of Alibaba FC 2.
  get queries() {
    return this.query;
  }

  get clientIP() {
    return this.ip;
  }

  keep(name, value) {
    Object.defineProperty(this, name, { value, writable: true, configurable: true, enumerable: true });
    return value;
  }

  /**
   * A request that can be read again after we have read its body, for handlers
   * that take the stream, not `body`.
   * @param {Buffer} body
   * @returns {Request}
   */
  replay(body) {
    const r = new Request(this.socket);
    for (const k of ['method', 'url', 'headers', 'rawHeaders', 'httpVersion', 'httpVersionMajor', 'httpVersionMinor']) {
      r[k] = this[k];
    }
    r.rawBody = body;
    // Without this Node would take the copy for a request that broke off.
    r.complete = true;
    if (body.length > 0) {
      r.push(body);
    }
    r.push(null);
    return r;
  }
}

class Response extends http.ServerResponse {
  locals = {};

  /** Bytes of body written, for the log. */
  bodyBytes = 0;

  write(chunk, encoding, callback) {
    this.bodyBytes += size(chunk, encoding);
    return super.write(chunk, encoding, callback);
  }

  end(chunk, encoding, callback) {
    if (typeof chunk !== 'function' && !this.writableEnded) {
      this.bodyBytes += size(chunk, encoding);
    }
    return super.end(chunk, encoding, callback);
  }

  status(code) {
    this.statusCode = code;
    return this;
  }

  set(name, value) {
    if (typeof name === 'object') {
      Object.entries(name).forEach(([k, v]) => this.setHeader(k, v));
    } else {
      this.setHeader(name, value);
    }
    return this;
  }

  header(name, value) {
    return this.set(name, value);
  }

  get(name) {
    return this.getHeader(name);
  }

  type(t) {
    return this.set('content-type', t.includes('/') ? t : types[t] || types.bin);
  }

  json(value) {
    this.typeIfNone('json');
    // undefined has no JSON; an empty body is what Express sends.
    const text = JSON.stringify(value);
    return this.finish(Buffer.from(text === undefined ? '' : text));
  }

  /** Sends text as HTML, bytes as they are, anything else as JSON. */
  send(body) {
    if (body === undefined || body === null) {
      return this.finish(Buffer.alloc(0));
    }
    if (typeof body === 'string') {
      this.typeIfNone('html');
      return this.finish(Buffer.from(body));
    }
    if (body instanceof Uint8Array) {
      this.typeIfNone('bin');
      return this.finish(Buffer.from(body));
    }
    return this.json(body);
  }

  sendStatus(code) {
    return this.status(code).type('text').send(http.STATUS_CODES[code] || String(code));
  }

  redirect(status, url) {
    const [code, to] = url === undefined ? [302, status] : [status, url];
    return this.status(code).set('location', encodeURI(decodeSafe(to))).end();
  }

  // Names of Alibaba FC 2.
  setStatusCode(code) {
    this.status(code);
  }

  deleteHeader(name) {
    this.removeHeader(name);
  }

  typeIfNone(t) {
    if (!this.hasHeader('content-type')) {
      this.type(t);
    }
  }

  finish(bytes) {
    if (this.statusCode !== 204 && this.statusCode !== 304) {
      this.setHeader('content-length', bytes.length);
    }
    this.end(bytes);
    return this;
  }
}

function size(chunk, encoding) {
  if (chunk === undefined || chunk === null || typeof chunk === 'function') {
    return 0;
  }
  return typeof chunk === 'string' ? Buffer.byteLength(chunk, typeof encoding === 'string' ? encoding : 'utf8') : chunk.length;
}

function decodeSafe(url) {
  try {
    return decodeURI(url);
  } catch {
    return url;
  }
}

/**
 * Reads a request's body.
 * @param {http.IncomingMessage} req
 * @param {number} limit bytes
 * @returns {Promise<Buffer>}
 * @throws {HttpError} 413 beyond the limit; the rest is discarded by Node
 */
function readBody(req, limit) {
  const tooLarge = () => new HttpError(413, 'PayloadTooLarge', `the body is larger than ${limit} bytes`);
  if (Number(req.headers['content-length']) > limit) {
    return Promise.reject(tooLarge());
  }
  return new Promise((resolve, reject) => {
    const chunks = [];
    let bytes = 0;
    const done = (err) => {
      req.off('data', onData);
      req.off('end', onEnd);
      req.off('close', onClose);
      if (err) {
        reject(err);
      } else {
        resolve(Buffer.concat(chunks, bytes));
      }
    };
    const onData = (chunk) => {
      bytes += chunk.length;
      if (bytes > limit) {
        done(tooLarge());
        req.resume();
        return;
      }
      chunks.push(chunk);
    };
    const onEnd = () => done();
    const onClose = () => done(new HttpError(400, 'BadRequest', 'the request broke off'));
    req.on('data', onData);
    req.on('end', onEnd);
    req.on('close', onClose);
    // Kept for good: a late reset of the connection must find a listener.
    req.on('error', onClose);
  });
}

function parseBody(raw, contentType) {
  if (raw.length === 0) {
    return {};
  }
  const type = contentType.split(';')[0].trim().toLowerCase();
  if (type === 'application/json' || type.endsWith('+json')) {
    try {
      return JSON.parse(raw.toString('utf8'));
    } catch (err) {
      throw new HttpError(400, 'BadRequest', `the body is not JSON: ${err.message}`);
    }
  }
  if (type === 'application/x-www-form-urlencoded') {
    return { ...querystring.parse(raw.toString('utf8')) };
  }
  return type.startsWith('text/') ? raw.toString('utf8') : raw;
}

/** The path and the query of a request target, which may be a whole URL. */
function splitUrl(target) {
  const rest = target.startsWith('/') ? target : target.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/?#]*/i, '');
  const q = rest.indexOf('?');
  const path = q < 0 ? rest : rest.slice(0, q);
  return { path: path.startsWith('/') ? path : `/${path}`, query: q < 0 ? '' : rest.slice(q + 1) };
}

/** The client as the nearest proxies name it: not proof of anything. */
function clientIp(req) {
  return first(req.headers['x-forwarded-for']) || req.socket.remoteAddress || '';
}

function first(list) {
  return (list || '').split(',')[0].trim();
}

module.exports = { Request, Response, readBody, splitUrl, clientIp };
