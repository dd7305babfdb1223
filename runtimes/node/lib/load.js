'use strict';

// From `path/file.export` to a function, CommonJS or ES module.

const fs = require('fs');
const path = require('path');
const { pathToFileURL } = require('url');
const { StartError, describe } = require('./errors');

/**
 * Finds the handler's file.
 * @param {import('./unit').Fn} fn
 * @param {string} dir where the function's code is
 * @returns {string} absolute path
 */
function locate(fn, dir) {
  for (const f of fn.files) {
    const file = path.join(dir, f);
    if (fs.statSync(file, { throwIfNoEntry: false })?.isFile()) {
      return file;
    }
  }
  throw new StartError(`function ${fn.name}: handler ${fn.handler}: no such file; looked for ${fn.files.join(', ')}`);
}

/**
 * Loads a module and picks what we call in it.
 * @returns {Promise<{handler: Function, init?: Function, preStop?: Function}>}
 * @throws {StartError} when the module can't be loaded or lacks the export; its
 *   cause is the module's own error
 */
async function load(fn, file) {
  let ns;
  try {
    ns = await import(pathToFileURL(file).href);
  } catch (err) {
    const d = describe(err);
    // A syntax error says where only in its stack.
    const why = d.type === 'SyntaxError' && d.stack ? d.stack.split('\n    at ')[0] : `${d.type}: ${d.message}`;
    throw failure(`function ${fn.name}: handler ${fn.handler} can't be loaded: ${why}`, d.stack);
  }
  const handler = pick(ns, fn.exportName);
  if (typeof handler !== 'function') {
    const names = [...new Set([...Object.keys(ns), ...Object.keys(Object(ns.default))])]
      .filter((k) => typeof pick(ns, k) === 'function' && k !== 'module.exports');
    throw new StartError(`function ${fn.name}: handler ${fn.handler}: the module exports no function ${fn.exportName}; ` +
      `it exports ${names.length > 0 ? names.sort().join(', ') : 'none'}`);
  }
  const optional = (name) => (typeof pick(ns, name) === 'function' ? pick(ns, name) : undefined);
  return { handler, init: optional('init') || optional('initializer'), preStop: optional('preStop') };
}

/**
 * An export by name. Node sees only some of a CommonJS module's exports as
 * names; all of them are members of its default.
 */
function pick(ns, name) {
  const d = ns.default;
  if (name === 'default') {
    return typeof d === 'function' ? d : d?.default;
  }
  if (typeof ns[name] === 'function') {
    return ns[name];
  }
  return d !== null && d !== undefined && d[name] !== Object.prototype[name] ? d[name] : undefined;
}

/**
 * Says whether a module may wait for its first call: its text names the
 * export, and nothing in it looks like a hook, which must run before ready.
 */
function mayWait(fn, file) {
  const text = fs.readFileSync(file, 'utf8');
  const names = (word) => new RegExp(`(?<![\\w$])${word.replace(/\$/g, '\\$&')}(?![\\w$])`).test(text);
  return names(fn.exportName) && !['init', 'initializer', 'preStop'].some(names);
}

/** A StartError that keeps the stack of the user's own error for the log. */
function failure(message, stack) {
  const err = new StartError(message);
  err.userStack = stack;
  return err;
}

/**
 * Calls a function in any of the three ways handlers answer: a promise, the
 * callback when it is declared (what the function returns then is ignored, as
 * `cb => setTimeout(…)` returns a timer) or was called at once, a plain value.
 * @param {Function} fn
 * @param {any[]} args without the callback
 */
function invoke(fn, args) {
  return new Promise((resolve, reject) => {
    let answered = false;
    const callback = (err, value) => {
      answered = true;
      if (err !== undefined && err !== null) {
        reject(err);
      } else {
        resolve(value);
      }
    };
    const returned = fn(...args, callback);
    if (returned !== null && typeof returned === 'object' && typeof returned.then === 'function') {
      returned.then(resolve, reject);
    } else if (fn.length <= args.length && !answered) {
      resolve(returned);
    }
  });
}

module.exports = { locate, load, mayWait, invoke };
