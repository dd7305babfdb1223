'use strict';

// Everything the process says is one JSON object per line on stdout, so that a
// log collector can join a function's own words with the request they belong to.

const util = require('util');
const { AsyncLocalStorage } = require('async_hooks');

/** The call (or, while loading, the function) that the running code belongs to. */
const scope = new AsyncLocalStorage();

/** Characters of one message that are kept: container runtimes cut long lines anyway. */
const maxMessage = 16 << 10;

class Logger {
  /** @param {{out: import('stream').Writable, revision: string}} options */
  constructor({ out, revision }) {
    this.out = out;
    this.revision = revision;
    // Whoever read the log may go away before we do.
    out.on('error', () => {});
  }

  /**
   * Writes one line. The function and request id come from the running scope.
   * @param {string} level debug, info, warn, error or fatal
   * @param {string} msg
   * @param {object} [fields] further fields; they don't replace ours
   */
  write(level, msg, fields) {
    this.out.write(this.line(level, msg, fields));
  }

  line(level, msg, fields) {
    const s = scope.getStore();
    const own = {
      ts: new Date().toISOString(),
      level,
      msg: cut(msg),
      requestId: s && s.requestId,
      function: s && s.functionName,
      revision: this.revision || undefined,
    };
    try {
      return JSON.stringify({ ...own, ...fields, ...defined(own) }) + '\n';
    } catch {
      // A field that can't be JSON (a cycle, a BigInt) must not lose the line.
      return JSON.stringify({ ...own, fields: cut(util.inspect(fields)) }) + '\n';
    }
  }

  /** The reason the process ends, on stderr. `d` is from errors.describe. */
  fatal(stderr, d) {
    stderr.write(this.line('fatal', d.message, { errorType: d.type, stack: d.stack ? cut(d.stack) : undefined }));
  }

  /** One line per request. */
  access(fields) {
    this.write(fields.status >= 500 ? 'error' : 'info', 'request', fields);
  }

  /** The logger a handler finds in its context. Fields are optional. */
  forContext() {
    const at = (level) => (...args) => {
      const last = args[args.length - 1];
      const fields = args.length > 1 && plain(last) ? args.pop() : undefined;
      this.write(level, util.format(...args), fields);
    };
    return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
  }

  /** Turns console.* into our lines. What is written to process.stdout directly stays as it is. */
  takeConsole(console) {
    const to = (level) => (...args) => this.write(level, util.format(...args));
    console.log = to('info');
    console.info = to('info');
    console.debug = to('debug');
    console.warn = to('warn');
    console.error = to('error');
    console.dir = (value, options) => this.write('info', util.inspect(value, options));
    console.trace = (...args) => {
      const at = { name: 'Trace', message: util.format(...args) };
      Error.captureStackTrace(at, console.trace);
      this.write('debug', at.stack);
    };
  }
}

function defined(o) {
  return Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined));
}

function plain(v) {
  return v !== null && typeof v === 'object' && Object.getPrototypeOf(v) === Object.prototype;
}

function cut(s) {
  return s.length <= maxMessage ? s : `${s.slice(0, maxMessage)}… (${s.length - maxMessage} more characters)`;
}

module.exports = { Logger, scope };
