'use strict';

// The life of the process: read, listen, load, ready, drain, end; and the way
// of one request from the socket to its function.

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const path = require('path');
const { StartError, HttpError, describe } = require('./errors');
const { scope } = require('./log');
const { parseUnit, environmentOf } = require('./unit');
const { Router } = require('./router');
const { Limiter } = require('./limit');
const { Request, Response, readBody, splitUrl } = require('./http');
const { httpEvent, reply, sendReply } = require('./event');
const { locate, load, mayWait, invoke } = require('./load');
const { newContext, memoryLimitMB } = require('./context');
const { Call } = require('./call');
const { Metrics } = require('./metrics');
const { runJob } = require('./job');
const { fire, isTimerCall, readTimer, timerEvent, timerCloudEvent } = require('./timer');

const defaults = {
  bodyLimit: 6 << 20, // bytes, as the clouds we are compatible with
  drainMs: 20_000, // with preStop's 5 s within the 30 s that Kubernetes gives
  drainDelayMs: 0,
  preStopMs: 5_000,
};

/**
 * Reads the environment, starts to listen, loads the unit and becomes ready.
 * Rejects with what kept it from that; the caller ends the process. With
 * FAAS_FIRE it makes one call instead, with a job's unit it runs the job.
 *
 * @param {{env: object, cwd: string, home: string, logger: import('./log').Logger,
 *   guards: {exit: Function, starting: Function | null}}} options
 *   cwd is where handlers are, home where the adapter's own files are.
 * @returns {Promise<number | undefined>} the exit code, where the work is done
 */
async function start({ env, cwd, home, logger, guards }) {
  const began = Date.now();
  const failed = new Promise((_, reject) => {
    guards.starting = reject;
  });
  failed.catch(() => {}); // whoever races with it hears of it
  if (env.FAAS_FIRE) {
    logger.write('info', await Promise.race([fire(env), failed]));
    return 0;
  }
  const unit = parseUnit(env.FAAS_UNIT);
  const adapter = new Adapter({
    unit,
    facts: {
      name: unit.name,
      service: env.K_SERVICE || '',
      revision: env.K_REVISION || '',
      image: env.FAAS_IMAGE || '',
      key: env.FAAS_KEY || '',
      mark: platformMark(home),
      memoryMB: memoryLimitMB(),
    },
    dir: cwd,
    lazy: env.FAAS_LOAD === 'lazy',
    timerKey: env.FAAS_TIMER_KEY || '',
    limits: {
      bodyLimit: number(env, 'FAAS_BODY_LIMIT', defaults.bodyLimit),
      drainMs: number(env, 'FAAS_DRAIN_MS', defaults.drainMs),
      drainDelayMs: number(env, 'FAAS_DRAIN_DELAY_MS', defaults.drainDelayMs),
      preStopMs: defaults.preStopMs,
    },
    logger,
  });
  delete env.FAAS_TIMER_KEY; // no business of user code
  Object.assign(env, environmentOf(unit));
  logger.takeConsole(console);
  if (unit.functions.some((f) => f.job)) {
    await Promise.race([adapter.loadAll(), failed]);
    return runJob({ adapter, env, logger, guards, failed });
  }
  await Promise.race([adapter.listen(portOf(env), env.FAAS_HOST), failed]);
  if (env.FAAS_METRICS_PORT) {
    const port = await adapter.metrics.serve(number(env, 'FAAS_METRICS_PORT', 0), env.FAAS_HOST, logger);
    logger.write('debug', 'metrics', { port });
  }
  onSignals(adapter, guards);
  await Promise.race([adapter.loadAll(), failed]);
  guards.starting = null;
  adapter.ready(Date.now() - began);
  return undefined;
}

class Adapter {
  constructor({ unit, facts, dir, lazy, timerKey, limits, logger }) {
    Object.assign(this, { unit, facts, lazy, timerKey, limits, logger });
    this.state = 'starting';
    this.router = new Router(unit.functions);
    this.calls = new Set();
    this.hooks = new Map(); // file → module, so a file's hooks run once
    this.slots = new Map();
    this.functions = new Map();
    for (const fn of unit.functions) {
      this.functions.set(fn.name, { fn, file: locate(fn, dir), module: null });
      this.slots.set(fn.name, new Limiter(fn.concurrency));
    }
    this.metrics = new Metrics();
    this.contextLogger = logger.forContext();
    this.server = http.createServer({ IncomingMessage: Request, ServerResponse: Response }, (req, res) => this.handle(req, res));
    // Longer than the proxies in front keep a connection, so that they close it, not we under them.
    this.server.keepAliveTimeout = 120_000;
    this.server.on('clientError', refuseBytes);
  }

  /**
   * @param {number} port 0 for any; the log line says which
   * @param {string} [host] the address to listen on; every one by default, as a pod needs
   */
  listen(port, host) {
    return new Promise((resolve, reject) => {
      this.server.once('error', (err) => reject(new StartError(`listen on port ${port}: ${err.message}`)));
      this.server.listen({ port, host }, () => {
        this.logger.write('info', 'listening', { port: this.server.address().port, unit: this.unit.name });
        resolve();
      });
    });
  }

  /**
   * Loads every function and runs each file's init hook, in the table's order.
   * With FAAS_LOAD=lazy those that may wait for their first call do.
   */
  async loadAll() {
    let at = '';
    // A module that hangs (a top-level await) would otherwise be silence.
    const slow = setInterval(() => this.logger.write('warn', `still starting: ${at}`), 5_000);
    try {
      for (const f of this.functions.values()) {
        if (this.lazy && this.functions.size > 1 && mayWait(f.fn, f.file)) {
          continue;
        }
        at = `loading ${f.fn.handler} of function ${f.fn.name}`;
        const module = await this.load(f);
        if (module.init && !this.hooks.has(f.file)) {
          at = `the init hook of function ${f.fn.name}`;
          await this.init(f, module);
        }
        this.hooks.set(f.file, module);
      }
    } finally {
      clearInterval(slow);
    }
  }

  load(f) {
    if (!f.module) {
      f.module = scope.run({ functionName: f.fn.name }, () => load(f.fn, f.file));
    }
    return f.module;
  }

  async init(f, module) {
    try {
      await scope.run({ functionName: f.fn.name }, () => invoke(module.init, [this.hookContext(f.fn)]));
    } catch (err) {
      const d = describe(err);
      const e = new StartError(`function ${f.fn.name}: its init hook failed: ${d.type}: ${d.message}`);
      e.userStack = d.stack;
      throw e;
    }
  }

  hookContext(fn) {
    const never = new AbortController().signal;
    return newContext({ requestId: '', traceparent: '', deadline: Infinity, timeoutMs: fn.timeoutMs, signal: never }, fn, this.facts, this.contextLogger);
  }

  ready(ms) {
    if (this.state === 'starting') {
      this.state = 'ready';
    }
    this.logger.write('info', 'ready', { unit: this.unit.name, functions: this.functions.size, ms });
  }

  /** Answers one request. Never throws and never rejects. */
  handle(req, res) {
    const { path: urlPath } = splitUrl(req.url);
    if (this.facts.mark) {
      res.setHeader('x-faas-platform', this.facts.mark);
    }
    if (urlPath === '/health/readiness' || urlPath === '/health/liveness') {
      const ok = this.state === 'ready' || urlPath === '/health/liveness';
      res.status(ok ? 200 : 503).json({ status: this.state });
      return;
    }
    const call = new Call(req, res, crypto.randomUUID, this.logger);
    this.calls.add(call);
    res.setHeader('x-request-id', call.requestId);
    if (this.state === 'draining') {
      res.setHeader('connection', 'close');
    }
    // A response that breaks off must find a listener.
    res.on('error', () => {});
    res.on('close', () => this.ended(call, req, res));
    scope.run(call, () => {
      this.route(req, res, call, urlPath).catch((err) => call.fail(err));
    });
  }

  ended(call, req, res) {
    call.end();
    this.calls.delete(call);
    // 499: the client left before the answer was complete.
    const status = res.writableFinished ? res.statusCode : 499;
    if (call.functionName) {
      // Who asked for nothing that is here, or who we are, is no function's.
      this.metrics.count(call.functionName, status, call.ms());
    }
    this.logger.access({
      requestId: call.requestId,
      function: call.functionName,
      route: call.route,
      method: req.method,
      status,
      ms: call.ms(),
      bytes: res.bodyBytes,
      traceId: call.traceparent ? call.traceparent.split('-')[1] : undefined,
    });
    if (this.state === 'draining') {
      setImmediate(() => this.server.closeIdleConnections());
    }
  }

  async route(req, res, call, urlPath) {
    if (this.state === 'starting') {
      throw new HttpError(503, 'NotReady', 'the unit is still starting', { 'retry-after': '1' });
    }
    if (req.headers['x-faas-nonce'] !== undefined) {
      this.answerNonce(req.headers['x-faas-nonce'], res, call);
      return;
    }
    if (isTimerCall(req, this.timerKey)) {
      await this.callTimer(req, res, call);
      return;
    }
    const match = this.router.find(req.method, urlPath);
    call.begin(match, req);
    const f = this.functions.get(match.fn.name);
    const body = await readBody(req, this.limits.bodyLimit);
    await this.inSlot(f, call, (handler, context) => (f.fn.contract === 'http'
      ? this.callHttp(handler, req, res, body, match, context)
      : this.callEvent(handler, req, res, body, match, call, context)));
  }

  /** Waits for one of the function's slots and does the work in it. */
  async inSlot(f, call, work) {
    call.queued = true;
    const release = await this.slots.get(f.fn.name).acquire(call.signal);
    call.queued = false;
    if (call.decided) {
      release(); // nobody waits for it any more
      return;
    }
    const letGo = this.releaseIfAbandoned(call, release);
    try {
      const { handler } = await this.load(f);
      await work(handler, newContext(call, f.fn, this.facts, this.contextLogger));
    } finally {
      letGo();
      release();
    }
  }

  /** A call by the clock. What the handler returns is nobody's; that it did is the answer. */
  async callTimer(req, res, call) {
    const timer = readTimer(await readBody(req, this.limits.bodyLimit));
    const f = this.functions.get(timer.function);
    if (!f || f.fn.contract !== 'event') {
      throw new HttpError(404, 'NotFound', `this unit has no function ${timer.function} that a timer can call`);
    }
    call.begin({ fn: f.fn, route: { path: `timer ${timer.triggerName}`, timeoutMs: f.fn.timeoutMs } }, req);
    await this.inSlot(f, call, async (handler, context) => {
      context.cloudEvent = timerCloudEvent(timer);
      await invoke(handler, [timerEvent(timer), context]);
      if (call.decide()) {
        res.status(204).finish(Buffer.alloc(0));
      }
    });
  }

  /**
   * A handler that goes on after its request is over keeps its slot, since a
   * function with concurrency 1 was promised to be alone; but only for one more
   * time-out, or one that never ends would block the function for good.
   * @returns {() => void} forgets it
   */
  releaseIfAbandoned(call, release) {
    let timer;
    const wait = () => {
      timer = setTimeout(() => {
        scope.run(call, () => this.logger.write('warn', `the handler still runs ${call.timeoutMs} ms after its request was over; its slot is given to others`));
        release();
      }, call.timeoutMs);
      timer.unref();
    };
    call.res.once('close', wait);
    return () => {
      call.res.off('close', wait);
      clearTimeout(timer);
    };
  }

  /** Says which revision this is, without calling the function. */
  answerNonce(nonce, res, call) {
    if (!/^[\w.-]{1,128}$/.test(nonce)) {
      throw new HttpError(400, 'BadRequest', 'x-faas-nonce must be 1 to 128 letters, digits, dots, underscores or dashes');
    }
    if (!call.decide()) {
      return;
    }
    res.setHeader('x-faas-nonce', nonce);
    for (const name of ['revision', 'image', 'key']) {
      if (this.facts[name]) {
        res.setHeader(`x-faas-${name}`, this.facts[name]);
      }
    }
    res.finish(Buffer.alloc(0));
  }

  async callEvent(handler, req, res, body, match, call, context) {
    const event = httpEvent(req, body, match, call);
    const result = await invoke(handler, [event, context]);
    const r = reply(result);
    if (call.decide()) {
      try {
        sendReply(res, r);
      } catch (err) {
        call.decided = false;
        throw err;
      }
    }
  }

  async callHttp(handler, req, res, body, match, context) {
    const request = req.replay(body);
    request.params = 'proxy' in match.params ? { ...match.params, 0: match.params.proxy } : match.params;
    const closed = new Promise((resolve) => res.once('close', resolve));
    // A handler may answer after it returned, or go on after it answered: the
    // slot is its until both are over.
    await Promise.all([handler(request, res, context), closed]);
  }

  /**
   * Ends in order: readiness fails, the listener closes, what runs may finish
   * within the limit, preStop hooks run.
   */
  async drain() {
    this.state = 'draining';
    this.logger.write('info', 'draining', { calls: this.calls.size });
    await sleep(this.limits.drainDelayMs);
    const closed = new Promise((resolve) => this.server.close(resolve));
    this.server.closeIdleConnections();
    for (const call of this.calls) {
      if (!call.res.headersSent) {
        call.res.setHeader('connection', 'close');
      }
    }
    const inTime = await Promise.race([closed.then(() => true), sleep(this.limits.drainMs).then(() => false)]);
    if (!inTime) {
      this.logger.write('warn', `${this.calls.size} requests did not end within ${this.limits.drainMs} ms and were cut`);
      this.server.closeAllConnections();
    }
    await this.runPreStop();
    this.logger.write('info', 'stopped');
  }

  async runPreStop() {
    const hooks = [...this.hooks].filter(([, module]) => module.preStop);
    await Promise.all(hooks.map(([file, module]) => this.preStop(file, module)));
  }

  async preStop(file, module) {
    const f = [...this.functions.values()].find((x) => x.file === file);
    try {
      await Promise.race([
        scope.run({ functionName: f.fn.name }, () => invoke(module.preStop, [this.hookContext(f.fn)])),
        sleep(this.limits.preStopMs).then(() => {
          throw new Error(`it did not end within ${this.limits.preStopMs} ms`);
        }),
      ]);
    } catch (err) {
      const d = describe(err);
      this.logger.write('error', `preStop of ${f.fn.handler} failed: ${d.message}`, { function: f.fn.name, errorType: d.type, stack: d.stack || undefined });
    }
  }
}

/** What is not HTTP gets a short answer and the door; Node's default is the door only. */
function refuseBytes(err, socket) {
  if (err.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  const [line, type] = {
    HPE_HEADER_OVERFLOW: ['431 Request Header Fields Too Large', 'HeadersTooLarge'],
    ERR_HTTP_REQUEST_TIMEOUT: ['408 Request Timeout', 'RequestTimeout'],
  }[err.code] || ['400 Bad Request', 'BadRequest'];
  const body = JSON.stringify({ errorType: type, errorMessage: line.slice(4) });
  socket.end(`HTTP/1.1 ${line}\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`);
}

function onSignals(adapter, guards) {
  let asked = false;
  const stop = () => {
    if (asked) {
      // Asked twice: somebody is in a hurry.
      guards.exit(1);
    }
    asked = true;
    if (adapter.state === 'starting') {
      guards.exit(0);
    }
    adapter.drain().then(() => guards.exit(0));
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}

/** The word a platform bundle wants to be recognised by, from platform.json beside main.js. */
function platformMark(home) {
  const file = path.join(home, 'platform.json');
  let text;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (err) {
    if (err.code === 'ENOENT') {
      return '';
    }
    throw new StartError(`the adapter's platform.json: ${err.message}`);
  }
  let mark;
  try {
    mark = JSON.parse(text).mark;
  } catch (err) {
    throw new StartError(`the adapter's platform.json: ${err.message}`);
  }
  if (mark === undefined) {
    return '';
  }
  if (typeof mark !== 'string' || !/^[\x21-\x7e]([\x20-\x7e]{0,126}[\x21-\x7e])?$/.test(mark)) {
    throw new StartError("the adapter's platform.json: mark: must be 1 to 128 printable ASCII characters");
  }
  return mark;
}

function portOf(env) {
  if (!/^\d{1,5}$/.test(env.PORT || '') || Number(env.PORT) > 65535) {
    throw new StartError(`PORT must be a port number, not ${JSON.stringify(env.PORT || '')}`);
  }
  return Number(env.PORT);
}

function number(env, name, otherwise) {
  if (!env[name]) {
    return otherwise;
  }
  if (!/^\d{1,9}$/.test(env[name])) {
    throw new StartError(`${name} must be a whole number, not ${JSON.stringify(env[name])}`);
  }
  return Number(env[name]);
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

module.exports = { start };
