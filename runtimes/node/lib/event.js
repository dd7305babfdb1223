'use strict';

// The event contract over HTTP. One event serves handlers written for AWS
// payload 2.0 and for Alibaba FC 3: the two differ in little more than
// queryStringParameters against queryParameters, so it carries both.

const querystring = require('querystring');
const { splitUrl, clientIp } = require('./http');
const { routeKey } = require('./router');
const { HttpError } = require('./errors');

/** Headers that belong to the connection, not to the reply. */
const hopByHop = new Set(['connection', 'content-length', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade']);

/**
 * The event of a request. Its toString() is its JSON, so the FC idiom
 * JSON.parse(event.toString()) works on it as on FC's Buffer.
 * @param {import('./http').Request} req
 * @param {Buffer} body
 * @param {{route: object, params: object}} match
 * @param {{requestId: string, started: number}} call
 */
function httpEvent(req, body, match, call) {
  const { path, query } = splitUrl(req.url);
  const queries = joined(querystring.parse(query));
  const key = routeKey(match.route);
  const cookie = req.headers.cookie;
  const event = {
    version: '2.0',
    routeKey: key,
    rawPath: path,
    rawQueryString: query,
    cookies: cookie ? cookie.split(/;\s*/) : [],
    headers: joined(req.headers),
    queryStringParameters: queries,
    queryParameters: { ...queries },
    pathParameters: { ...match.params },
    ...eventBody(body, req.headers),
    requestContext: {
      domainName: req.headers.host || '',
      requestId: call.requestId,
      routeKey: key,
      stage: '$default',
      time: new Date(call.started).toISOString(),
      timeEpoch: call.started,
      http: {
        method: req.method,
        path,
        protocol: `HTTP/${req.httpVersion}`,
        sourceIp: clientIp(req),
        userAgent: req.headers['user-agent'] || '',
      },
    },
  };
  Object.defineProperty(event, 'toString', {
    value() {
      return JSON.stringify(this);
    },
    writable: true,
    configurable: true,
  });
  return event;
}

function eventBody(body, headers) {
  if (body.length === 0) {
    return { body: '', isBase64Encoded: false };
  }
  const text = isText(headers) ? utf8(body) : undefined;
  return text === undefined
    ? { body: body.toString('base64'), isBase64Encoded: true }
    : { body: text, isBase64Encoded: false };
}

function isText(headers) {
  if (headers['content-encoding'] && headers['content-encoding'] !== 'identity') {
    return false;
  }
  const type = (headers['content-type'] || 'text/plain').split(';')[0].trim().toLowerCase();
  return type.startsWith('text/') || /^application\/(json|xml|javascript|x-www-form-urlencoded|graphql|x-ndjson|yaml)$/.test(type) || /\+(json|xml)$/.test(type);
}

/** The text of bytes, or undefined when they are not UTF-8. */
function utf8(bytes) {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

function joined(map) {
  const out = {};
  for (const [k, v] of Object.entries(map)) {
    out[k] = Array.isArray(v) ? v.join(',') : v;
  }
  return out;
}

/**
 * What a handler's result means: an object with statusCode is the whole
 * reply; anything else is a 200 with FC's rule: bytes as they are, an object
 * as JSON, other values as text, nothing as an empty body.
 * @returns {{status: number, headers: [string, string | string[]][], body: Buffer}}
 * @throws {HttpError} 500 BadReply when it can't be sent
 */
function reply(result) {
  if (isObject(result) && result.statusCode !== undefined) {
    return fullReply(result);
  }
  const { type, body } = encode(result);
  return { status: 200, headers: type ? [['content-type', type]] : [], body };
}

function fullReply(r) {
  const status = typeof r.statusCode === 'string' && /^\d{3}$/.test(r.statusCode) ? Number(r.statusCode) : r.statusCode;
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    throw badReply(`statusCode ${show(r.statusCode)} is not a number from 200 to 599`);
  }
  const headers = new Map();
  const put = (name, values) => {
    if (!hopByHop.has(name.toLowerCase())) {
      headers.set(name.toLowerCase(), values.length === 1 ? values[0] : values);
    }
  };
  for (const [name, v] of Object.entries(map(r.headers, 'headers'))) {
    if (v !== undefined && v !== null) {
      put(name, [v].flat().map(String));
    }
  }
  for (const [name, v] of Object.entries(map(r.multiValueHeaders, 'multiValueHeaders'))) {
    put(name, [v].flat().map(String));
  }
  if (r.cookies !== undefined && r.cookies !== null) {
    put('set-cookie', [headers.get('set-cookie') || [], r.cookies].flat(2).map(String));
  }
  let { type, body } = encode(r.body);
  if (r.isBase64Encoded === true || r.isBase64Encoded === 'true') {
    if (typeof r.body !== 'string') {
      throw badReply('isBase64Encoded needs a body that is a string');
    }
    type = 'application/octet-stream';
    body = Buffer.from(r.body, 'base64');
  }
  if (type && !headers.has('content-type')) {
    headers.set('content-type', type);
  }
  return { status, headers: [...headers], body };
}

function encode(v) {
  if (v === undefined || v === null) {
    return { type: '', body: Buffer.alloc(0) };
  }
  if (v instanceof Uint8Array) {
    return { type: 'application/octet-stream', body: Buffer.from(v.buffer, v.byteOffset, v.byteLength) };
  }
  if (isObject(v)) {
    let text;
    try {
      text = JSON.stringify(v);
    } catch (err) {
      throw badReply(err.message.split('\n')[0]);
    }
    return { type: 'application/json', body: Buffer.from(text === undefined ? '' : text) };
  }
  return { type: 'text/plain; charset=utf-8', body: Buffer.from(String(v)) };
}

function map(v, name) {
  if (v === undefined || v === null) {
    return {};
  }
  if (!isObject(v) || Array.isArray(v)) {
    throw badReply(`${name} is not an object`);
  }
  return v;
}

function isObject(v) {
  return v !== null && typeof v === 'object';
}

function show(v) {
  return typeof v === 'string' || typeof v === 'number' ? JSON.stringify(v) : `of type ${typeof v}`;
}

function badReply(why) {
  return new HttpError(500, 'BadReply', `the handler's reply can't be sent: ${why}`);
}

/** Sends a reply. A header that Node refuses (a line break in it) is a 500 of ours. */
function sendReply(res, r) {
  for (const [name, value] of r.headers) {
    try {
      res.setHeader(name, value);
    } catch (err) {
      throw badReply(`header ${JSON.stringify(name)}: ${err.message}`);
    }
  }
  res.statusCode = r.status;
  res.finish(r.body);
}

module.exports = { httpEvent, reply, sendReply };
