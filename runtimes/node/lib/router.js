'use strict';

// Which function a request belongs to. Routes are those of faas.yml: literal
// segments, /a/[id] for one segment, /a/* for everything below /a (not /a
// itself). The more literal route wins, segment by segment from the left:
// literal before [id] before *. One slash at the end of a path is ignored.

const { StartError, HttpError } = require('./errors');

const kinds = { literal: 0, param: 1, rest: 2 };

/**
 * @typedef {{fn: import('./unit').Fn, route: import('./unit').Route, params: Object<string, string>}} Match
 */
class Router {
  /**
   * @param {import('./unit').Fn[]} functions
   * @throws {StartError} when a path is malformed or two functions claim the same
   */
  constructor(functions) {
    this.entries = [];
    const claimed = new Map();
    const problems = [];
    for (const fn of functions) {
      for (const route of fn.routes) {
        let segments;
        try {
          segments = parsePath(route.path);
        } catch (err) {
          problems.push(`function ${fn.name}: ${err.message}`);
          continue;
        }
        const shape = segments.map((s) => (s.kind === kinds.literal ? `=${s.text}` : s.kind)).join('/');
        for (const m of route.methods.length > 0 ? route.methods : ['ANY']) {
          const other = claimed.get(`${m} ${shape}`);
          if (other) {
            problems.push(`functions ${other} and ${fn.name} both claim ${m} ${route.path}`);
          }
          claimed.set(`${m} ${shape}`, fn.name);
        }
        this.entries.push({ fn, route, segments });
      }
    }
    if (problems.length > 0) {
      throw new StartError(problems.join('\n'));
    }
    // Sorted once, so the first entry that fits is the right one. A route with
    // methods stands before the same path without.
    this.entries.sort((a, b) => compare(a.segments, b.segments) || b.route.methods.length - a.route.methods.length);
  }

  /**
   * Finds the route of a request.
   * @param {string} method
   * @param {string} path as received, still encoded, without the query
   * @returns {Match}
   * @throws {HttpError} 400 for a broken escape, 404, 405 with the header allow
   */
  find(method, path) {
    let parts;
    try {
      parts = splitPath(path).map(decodeURIComponent);
    } catch {
      throw new HttpError(400, 'BadRequest', 'the path holds a broken percent escape');
    }
    const allow = new Set();
    for (const { fn, route, segments } of this.entries) {
      const params = match(segments, parts);
      if (!params) {
        continue;
      }
      if (allows(route, method)) {
        return { fn, route, params };
      }
      route.methods.forEach((m) => allow.add(m));
    }
    if (allow.size > 0) {
      const list = [...allow].sort().join(', ');
      throw new HttpError(405, 'MethodNotAllowed', `${method} is not allowed here; allowed: ${list}`, { allow: list });
    }
    throw new HttpError(404, 'NotFound', 'no function has this path');
  }
}

function allows(route, method) {
  const m = route.methods;
  return m.length === 0 || m.includes(method) || (method === 'HEAD' && m.includes('GET'));
}

function splitPath(path) {
  const parts = path.split('/').slice(1);
  if (parts.length > 0 && parts[parts.length - 1] === '') {
    parts.pop();
  }
  return parts;
}

function parsePath(path) {
  if (!path.startsWith('/') || /[?#\s]/.test(path)) {
    throw new StartError(`path ${JSON.stringify(path)} must start with / and hold no ?, # or space`);
  }
  const names = new Set();
  const parts = splitPath(path);
  return parts.map((part, i) => {
    if (part === '*') {
      if (i !== parts.length - 1) {
        throw new StartError(`path ${path}: * must be the last segment`);
      }
      return { kind: kinds.rest };
    }
    const param = /^\[([A-Za-z_][\w-]*)\]$/.exec(part);
    if (param) {
      if (names.has(param[1])) {
        throw new StartError(`path ${path}: [${param[1]}] is there twice`);
      }
      names.add(param[1]);
      return { kind: kinds.param, text: param[1] };
    }
    if (/[[\]*]/.test(part)) {
      throw new StartError(`path ${path}: segment ${part}: a parameter is a whole segment, like [id] or *`);
    }
    return { kind: kinds.literal, text: part };
  });
}

function match(segments, parts) {
  const params = {};
  for (let i = 0; i < segments.length; i++) {
    const s = segments[i];
    if (s.kind === kinds.rest) {
      if (parts.length <= i) {
        return null;
      }
      params.proxy = parts.slice(i).join('/');
      return params;
    }
    if (i >= parts.length || (s.kind === kinds.literal ? s.text !== parts[i] : parts[i] === '')) {
      return null;
    }
    if (s.kind === kinds.param) {
      params[s.text] = parts[i];
    }
  }
  return parts.length === segments.length ? params : null;
}

function compare(a, b) {
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    if (i >= a.length || i >= b.length) {
      return b.length - a.length;
    }
    if (a[i].kind !== b[i].kind) {
      return a[i].kind - b[i].kind;
    }
  }
  return 0;
}

/** The route as API Gateway writes it: "GET /a/{id}", "ANY /a/{proxy+}". */
function routeKey(route) {
  const path = route.path.replace(/\[([^\]]+)\]/g, '{$1}').replace(/\*$/, '{proxy+}');
  return `${route.methods.length === 1 ? route.methods[0] : 'ANY'} ${path}`;
}

module.exports = { Router, routeKey };
