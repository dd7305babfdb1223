'use strict';

/**
 * What stops the process from becoming ready, said so that the person who can
 * change it knows what to change. Its own stack is of no use to anybody; userStack
 * is the user's, where there is one.
 */
class StartError extends Error {
  constructor(message) {
    super(message);
    this.name = 'StartError';
  }
}

/** An answer other than the handler's: 404, 413, 504… `statusCode` is sent. */
class HttpError extends Error {
  constructor(statusCode, type, message, headers = {}) {
    super(message);
    this.name = type;
    this.statusCode = statusCode;
    this.headers = headers;
  }
}

/**
 * The type, message, status and stack of anything that was thrown. User code
 * throws strings, nulls and objects whose getters throw; this never does.
 *
 * @returns {{type: string, message: string, status: number, stack: string}}
 */
function describe(err) {
  const d = { type: 'Error', message: '', status: 500, stack: '' };
  try {
    if (err !== null && typeof err === 'object') {
      d.type = text(err.name) || 'Error';
      d.message = text(err.message) || d.type;
      d.stack = err instanceof StartError || err instanceof HttpError ? text(err.userStack) : text(err.stack);
      if (Number.isInteger(err.statusCode) && err.statusCode >= 400 && err.statusCode <= 599) {
        d.status = err.statusCode;
      }
    } else {
      d.message = String(err);
    }
  } catch {
    d.message = d.message || 'an error that can not be described was thrown';
  }
  return d;
}

function text(v) {
  return typeof v === 'string' ? v : '';
}

module.exports = { StartError, HttpError, describe };
