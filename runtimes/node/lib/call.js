'use strict';

// One request on its way through one function: its deadline, its slot, and the
// rule that it is answered once, whoever comes first: the handler, the
// time-out, an error nobody caught, or the client that went away.

const { describe, HttpError } = require('./errors');

const requestIdForm = /^[\w.:/+=@-]{1,128}$/;
const traceparentForm = /^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?$/;

class Call {
  /**
   * @param {import('./http').Request} req
   * @param {import('./http').Response} res
   * @param {() => string} newId makes an id for a request that brings none
   * @param {import('./log').Logger} logger
   */
  constructor(req, res, newId, logger) {
    const id = req.headers['x-request-id'];
    this.requestId = requestIdForm.test(id || '') ? id : newId();
    const tp = req.headers.traceparent;
    this.traceparent = traceparentForm.test(tp || '') ? tp : '';
    this.started = Date.now();
    this.clock = process.hrtime.bigint();
    this.functionName = undefined;
    this.route = undefined;
    this.timeoutMs = 0;
    this.deadline = 0;
    this.res = res;
    this.logger = logger;
    this.timer = null;
    /** True while it waits for a slot: then the handler is not to blame. */
    this.queued = false;
    /** True from the moment somebody decided the answer. */
    this.decided = false;
    const abort = new AbortController();
    this.signal = abort.signal;
    this.abort = abort;
  }

  /** Gives the call its function and starts its clock; a client that sends too slowly is told so. */
  begin(match, req) {
    this.functionName = match.fn.name;
    this.route = match.route.path;
    this.timeoutMs = match.route.timeoutMs;
    this.deadline = this.started + this.timeoutMs;
    this.timer = setTimeout(() => {
      if (this.queued) {
        this.abort.abort(); // the limiter answers
        return;
      }
      this.fail(req.complete
        ? new HttpError(504, 'Timeout', `the function did not answer within ${this.timeoutMs} ms`)
        : new HttpError(408, 'RequestTimeout', `the request was not complete after ${this.timeoutMs} ms`, { connection: 'close' }));
      this.abort.abort();
    }, this.timeoutMs);
  }

  /**
   * Decides the answer; false when somebody else already did.
   * @returns {boolean}
   */
  decide() {
    if (this.decided) {
      return false;
    }
    this.decided = true;
    return true;
  }

  /**
   * Answers with an error, as JSON. When the answer is already under way the
   * connection is cut, so that nobody takes the part for the whole. The stack
   * goes to the log only.
   */
  fail(err, { logged = false } = {}) {
    const d = describe(err);
    const first = this.decide();
    const late = !first || this.res.writableEnded;
    // Our own errors that come too late (a slot that is not needed any more) say nothing new.
    if (!logged && (late ? !(err instanceof HttpError) : d.status >= 500)) {
      this.logger.write('error', d.message + (late ? ' (after the request was answered)' : ''), { errorType: d.type, stack: d.stack || undefined });
    }
    if (late) {
      return;
    }
    if (this.res.headersSent) {
      this.res.destroy();
      return;
    }
    for (const name of this.res.getHeaderNames()) {
      // What the function had set before it failed is not part of this answer.
      if (name !== 'x-request-id' && name !== 'x-faas-platform' && name !== 'connection') {
        this.res.removeHeader(name);
      }
    }
    for (const [k, v] of Object.entries((err instanceof HttpError && err.headers) || {})) {
      this.res.setHeader(k, v);
    }
    this.res.statusCode = d.status;
    this.res.json({ errorType: d.type, errorMessage: d.message, requestId: this.requestId });
  }

  /** Called once, when the response is gone for good. */
  end() {
    clearTimeout(this.timer);
    this.decided = true;
    if (!this.res.writableFinished) {
      // Frees whoever still works for a client that left.
      this.abort.abort();
    }
  }

  /** Milliseconds since the request's headers were read, to a tenth. */
  ms() {
    return Math.round(Number(process.hrtime.bigint() - this.clock) / 1e5) / 10;
  }
}

module.exports = { Call };
