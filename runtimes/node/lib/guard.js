'use strict';

// Several functions share this process, so none of them may end it, and an
// error that nobody caught costs the request it belongs to, not the others.
//
// Node's own advice is to exit after an uncaught exception, because state may
// be broken. We log it, fail the request it came from and stay: in a process
// of many functions an exit turns one bug into everybody's outage, and the
// next request to the broken function says the same thing again in the log.
// Before the unit is ready the same error does end the process (see adapter.js).

const { scope } = require('./log');
const { StartError, describe } = require('./errors');

/**
 * Takes process.exit, process.abort and process.kill of ourselves away from
 * user code, and listens for errors nobody caught.
 *
 * @returns {{exit: (code: number) => never, starting: ((err: any) => void) | null}}
 *   exit is the real one; starting, while set, receives uncaught errors instead of the log; during names that time.
 */
function installGuards(logger) {
  const realExit = process.exit.bind(process);
  const realKill = process.kill.bind(process);
  const guards = { exit: realExit, starting: null, during: 'starting' };

  const refuse = (what) => {
    const err = new Error(`${what} was called: a function can not end the process it shares with others; throw an error instead`);
    err.name = 'ProcessExitRefused';
    throw err;
  };
  process.exit = (code) => refuse(`process.exit(${code === undefined ? '' : code})`);
  process.abort = () => refuse('process.abort()');
  process.kill = (pid, signal) => {
    if (signal !== 0 && (pid === process.pid || pid === 0 || pid === -process.pid)) {
      refuse(`process.kill(${pid})`);
    }
    return realKill(pid, signal);
  };

  const uncaught = (kind) => (err) => {
    const d = describe(err);
    if (guards.starting) {
      const at = scope.getStore();
      const e = new StartError(`${at ? `function ${at.functionName}: ` : ''}${kind} while ${guards.during}: ${d.type}: ${d.message}`);
      e.userStack = d.stack;
      guards.starting(e);
      return;
    }
    logger.write('error', `${kind}: ${d.message}`, { errorType: d.type, stack: d.stack || undefined });
    const call = scope.getStore();
    if (call && call.fail) {
      call.fail(err, { logged: true });
    }
  };
  process.on('uncaughtException', uncaught('uncaught exception'));
  process.on('unhandledRejection', uncaught('unhandled rejection'));
  return guards;
}

module.exports = { installGuards };
