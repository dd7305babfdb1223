'use strict';

// Calls by the clock. A cluster's timer starts a container of the unit's own
// image: a job runs its handler there (job.js), and for a function that
// answers requests the container sends the event to the live revision (fire)
// and ends with how that went.
//
// A call proves itself with FAAS_TIMER_KEY, which only the unit's containers
// have: a unit may be public, and nobody outside may play the clock.

const crypto = require('crypto');
const http = require('http');
const { HttpError, StartError } = require('./errors');

const header = 'x-faas-timer';

/** Where fire sends calls. The path is for logs: the header decides. */
const timerPath = '/_faas/timer';

/** How long fire tries to reach an address that nobody listens at yet. */
const reachMs = 30_000;

/**
 * @typedef {{function: string, triggerName: string, payload: string, triggerTime: string, id: string, source: string}} Timer
 */

/**
 * The time a container was started for, in RFC 3339. Kubernetes names a timed
 * run <timer>-<minutes since 1970>; a run with another name is for now.
 * @param {object} env
 */
function triggerTime(env) {
  const minutes = /-(\d{8,10})$/.exec(env.FAAS_JOB_NAME || '');
  const at = minutes ? new Date(Number(minutes[1]) * 60_000) : new Date();
  return at.toISOString().replace(/\.\d{3}Z$/, 'Z');
}

/** The timer this container was started by; null: none. */
function timerOf(env) {
  if (!env.FAAS_TIMER) {
    return null;
  }
  const t = object(env.FAAS_TIMER, 'FAAS_TIMER');
  return {
    function: text(t.function),
    triggerName: text(t.name),
    payload: text(t.payload),
    triggerTime: env.FAAS_TIMER_TIME || triggerTime(env),
    id: env.FAAS_JOB_NAME || crypto.randomUUID(),
    source: text(t.source),
  };
}

/** The event of a timer, as Alibaba FC's timer trigger writes it. */
function timerEvent(t) {
  return withToString({ triggerTime: t.triggerTime, triggerName: t.triggerName, payload: t.payload });
}

/** The same call as a CloudEvent, for context.cloudEvent. Its id is one for each time. */
function timerCloudEvent(t) {
  return {
    specversion: '1.0',
    id: t.id,
    source: t.source,
    type: 'dev.kuroko.timer',
    subject: t.function,
    time: t.triggerTime,
    datacontenttype: 'text/plain',
    data: t.payload,
  };
}

/** Makes JSON.parse(event.toString()) work, as FC's events are bytes. */
function withToString(event) {
  if (event !== null && typeof event === 'object') {
    Object.defineProperty(event, 'toString', {
      value() {
        return JSON.stringify(this);
      },
      writable: true,
      configurable: true,
    });
  }
  return event;
}

/**
 * Says whether a request is a timer's call; without a key none is.
 * @throws {HttpError} 403 for one that can't prove it
 */
function isTimerCall(req, key) {
  const given = req.headers[header];
  if (given === undefined || !key) {
    return false;
  }
  const [a, b] = [given, key].map((s) => crypto.createHash('sha256').update(s).digest());
  if (!crypto.timingSafeEqual(a, b)) {
    throw new HttpError(403, 'Forbidden', `the header ${header} is for the platform's timers`);
  }
  return true;
}

/**
 * The timer in a call's body.
 * @param {Buffer} body
 * @returns {Timer}
 */
function readTimer(body) {
  let t;
  try {
    t = object(body.toString(), 'the body');
  } catch (err) {
    throw new HttpError(400, 'BadRequest', err.message);
  }
  return Object.fromEntries(['function', 'triggerName', 'payload', 'triggerTime', 'id', 'source'].map((k) => [k, text(t[k])]));
}

/**
 * Sends the timer's call as FAAS_FIRE says: {"url", "headers", "timeoutMs"}.
 * A call is sent once: only an address that nobody listened at is tried again,
 * since there the function can't have run.
 * @returns {Promise<string>} what it did
 */
async function fire(env) {
  const to = object(env.FAAS_FIRE, 'FAAS_FIRE');
  const t = timerOf(env);
  if (!t) {
    throw new StartError('FAAS_TIMER is not set');
  }
  const body = JSON.stringify(t);
  const headers = { ...to.headers, 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), [header]: env.FAAS_TIMER_KEY || '' };
  const giveUp = Date.now() + reachMs;
  for (let pause = 100; ; pause = Math.min(2 * pause, 2_000)) {
    try {
      const r = await post(text(to.url) + timerPath, headers, body, Number(to.timeoutMs) || 60_000);
      if (r.status >= 200 && r.status < 300) {
        return `function ${t.function} answered ${r.status}`;
      }
      throw new StartError(`function ${t.function} answered ${r.status}: ${r.text}`);
    } catch (err) {
      if (!['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH'].includes(err.code)) {
        throw err;
      }
      if (Date.now() > giveUp) {
        throw new StartError(`function ${t.function} could not be reached at ${to.url}: ${err.message}`);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

function post(url, headers, body, timeoutMs) {
  return new Promise((resolve, reject) => {
    const req = http.request(url, { method: 'POST', headers, agent: false }, (res) => {
      const chunks = [];
      let size = 0;
      res.on('data', (c) => {
        size += c.length;
        if (size <= 4096) {
          chunks.push(c); // an error's text; the rest is of no use here
        }
      });
      res.on('error', reject);
      res.on('end', () => resolve({ status: res.statusCode, text: Buffer.concat(chunks).toString() }));
    });
    req.setTimeout(timeoutMs, () => req.destroy(new StartError(`no answer within ${timeoutMs} ms`)));
    req.on('error', reject);
    req.end(body);
  });
}

function object(s, name) {
  let v;
  try {
    v = JSON.parse(s);
  } catch (err) {
    throw new StartError(`${name} is not JSON: ${err.message}`);
  }
  if (v === null || typeof v !== 'object' || Array.isArray(v)) {
    throw new StartError(`${name} must be a JSON object`);
  }
  return v;
}

function text(v) {
  return typeof v === 'string' ? v : '';
}

module.exports = { fire, isTimerCall, readTimer, timerOf, timerEvent, timerCloudEvent, withToString };
