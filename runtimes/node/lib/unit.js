'use strict';

// The handler table: what FAAS_UNIT holds, checked. The Go side of the same
// table is runtimes.Unit.

const { StartError } = require('./errors');

const contracts = ['event', 'http'];

/** Milliseconds a request may take when neither function nor route says so. */
const defaultTimeoutMs = 60_000;

/**
 * @typedef {{path: string, methods: string[], timeoutMs: number}} Route methods is empty for any
 * @typedef {{name: string, handler: string, files: string[], exportName: string, contract: 'event'|'http',
 *   timeoutMs: number, concurrency: number, environment: Object<string, string>, routes: Route[],
 *   job: {completions: number, parallelism: number} | null}} Fn job's timeoutMs of 0 is no limit
 * @typedef {{name: string, functions: Fn[]}} Unit
 */

/**
 * Reads the table and reports every problem at once, by the name of its field.
 * Unknown fields are left alone: an older adapter may meet a newer table.
 * @param {string | undefined} text
 * @returns {Unit}
 */
function parseUnit(text) {
  if (!text) {
    throw new StartError('FAAS_UNIT is not set: it must hold the handler table as JSON');
  }
  let raw;
  try {
    raw = JSON.parse(text);
  } catch (err) {
    throw new StartError(`FAAS_UNIT is not JSON: ${err.message}`);
  }
  const problems = [];
  const bad = (field, why) => problems.push(`FAAS_UNIT: ${field}: ${why}`);
  const unit = { name: '', functions: [] };
  if (!isMap(raw)) {
    throw new StartError('FAAS_UNIT must be a JSON object');
  }
  unit.name = string(raw.name, 'name', bad);
  if (!Array.isArray(raw.functions) || raw.functions.length === 0) {
    throw new StartError('FAAS_UNIT: functions: must list at least one function');
  }
  const names = new Set();
  raw.functions.forEach((f, i) => {
    const at = `functions[${i}]`;
    if (!isMap(f)) {
      bad(at, 'must be an object');
      return;
    }
    const fn = parseFunction(f, at, bad);
    if (names.has(fn.name)) {
      bad(`${at}.name`, `${JSON.stringify(fn.name)} is there twice`);
    }
    names.add(fn.name);
    unit.functions.push(fn);
  });
  if (unit.functions.length > 1 && unit.functions.some((f) => f.job)) {
    bad('functions', 'a job is alone in its unit');
  }
  environmentOf(unit, bad);
  if (problems.length > 0) {
    throw new StartError(problems.join('\n'));
  }
  return unit;
}

function parseFunction(f, at, bad) {
  const fn = {
    name: string(f.name, `${at}.name`, bad),
    handler: string(f.handler, `${at}.handler`, bad),
    files: [],
    exportName: '',
    contract: f.contract === undefined || f.contract === '' ? 'event' : f.contract,
    timeoutMs: isMap(f.job) ? 0 : duration(f.timeoutMs, `${at}.timeoutMs`, bad) || defaultTimeoutMs,
    concurrency: count(f.concurrency, `${at}.concurrency`, bad),
    environment: {},
    routes: [],
    job: null,
  };
  if (isMap(f.job)) {
    fn.job = { completions: count(f.job.completions, `${at}.job.completions`, bad) || 1, parallelism: count(f.job.parallelism, `${at}.job.parallelism`, bad) || 1 };
    fn.timeoutMs = count(f.timeoutMs, `${at}.timeoutMs`, bad, Number.MAX_SAFE_INTEGER); // no timer of ours: the cluster ends the run
    if (fn.contract !== 'event') {
      bad(`${at}.contract`, `${JSON.stringify(fn.contract)} is not a contract of jobs; they know event`);
    }
  } else if (f.job != null) {
    bad(`${at}.job`, 'must be an object');
  }
  if (!contracts.includes(fn.contract)) {
    bad(`${at}.contract`, `${JSON.stringify(fn.contract)} is not a contract of this adapter; it knows ${contracts.join(', ')}`);
  }
  if (fn.handler) {
    try {
      Object.assign(fn, splitHandler(fn.handler));
    } catch (err) {
      bad(`${at}.handler`, err.message);
    }
  }
  if (isMap(f.environment)) {
    for (const [k, v] of Object.entries(f.environment)) {
      if (k === 'PORT' || /^(FAAS_|K_(SERVICE|REVISION|CONFIGURATION)$)/.test(k)) {
        bad(`${at}.environment.${k}`, 'is a variable of the platform');
      }
      fn.environment[k] = string(v, `${at}.environment.${k}`, bad, true);
    }
  } else if (f.environment != null) {
    bad(`${at}.environment`, 'must be an object');
  }
  if (Array.isArray(f.routes)) {
    f.routes.forEach((r, j) => {
      const here = `${at}.routes[${j}]`;
      if (!isMap(r)) {
        bad(here, 'must be an object');
        return;
      }
      fn.routes.push({
        path: string(r.path, `${here}.path`, bad),
        methods: methods(r.methods, `${here}.methods`, bad),
        timeoutMs: duration(r.timeoutMs, `${here}.timeoutMs`, bad) || fn.timeoutMs,
      });
    });
  } else if (f.routes != null) {
    bad(`${at}.routes`, 'must be a list');
  }
  return fn;
}

/**
 * The files that `path/file.export` may name, in the order they are tried, and
 * the export. Mirrored in Go by runtimes.NodeHandler; testdata/handlers.json
 * keeps the two equal.
 * @param {string} handler
 * @returns {{files: string[], exportName: string}}
 */
function splitHandler(handler) {
  const dot = handler.lastIndexOf('.');
  const base = handler.slice(0, dot);
  const exportName = handler.slice(dot + 1);
  if (dot <= 0 || base.endsWith('/') || !/^[A-Za-z_$][\w$]*$/.test(exportName)) {
    throw new StartError(`${JSON.stringify(handler)} is not of the form path/file.export`);
  }
  if (base.startsWith('/') || base.includes('\\') || base.split('/').includes('..')) {
    throw new StartError(`${JSON.stringify(handler)} must be a path below the function's folder`);
  }
  return { files: ['.js', '.cjs', '.mjs', '/index.js'].map((ext) => base + ext), exportName };
}

/**
 * The variables of all functions together. One process has one environment, so
 * two functions that want different values can't share it.
 */
function environmentOf(unit, bad = () => {}) {
  const env = {};
  const owner = {};
  for (const fn of unit.functions) {
    for (const [k, v] of Object.entries(fn.environment)) {
      if (Object.hasOwn(env, k) && env[k] !== v) {
        bad(`functions ${owner[k]} and ${fn.name}: environment.${k}`, 'they differ, and one process has one environment; make one of them standalone');
      }
      env[k] = v;
      owner[k] = fn.name;
    }
  }
  return env;
}

function isMap(v) {
  return v !== null && typeof v === 'object' && !Array.isArray(v);
}

function string(v, field, bad, emptyOk = false) {
  if (typeof v === 'string' && (v !== '' || emptyOk)) {
    return v;
  }
  bad(field, v === undefined ? 'is missing' : 'must be a string that is not empty');
  return '';
}

function duration(v, field, bad) {
  // setTimeout's limit; beyond it Node fires at once.
  return count(v, field, bad, 2 ** 31 - 1);
}

function count(v, field, bad, max = 1e6) {
  if (v == null) {
    return 0;
  }
  if (Number.isInteger(v) && v >= 0 && v <= max) {
    return v;
  }
  bad(field, `must be a whole number from 0 to ${max}`);
  return 0;
}

function methods(v, field, bad) {
  if (v == null) {
    return [];
  }
  if (!Array.isArray(v) || !v.every((m) => typeof m === 'string' && /^[A-Za-z-]+$/.test(m))) {
    bad(field, 'must be a list of HTTP methods');
    return [];
  }
  const upper = v.map((m) => m.toUpperCase());
  return upper.includes('ANY') ? [] : upper;
}

module.exports = { parseUnit, splitHandler, environmentOf, defaultTimeoutMs };
