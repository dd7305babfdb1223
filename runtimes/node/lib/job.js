'use strict';

// A job: the handler runs once, with no port, and the process ends with it.
// Its return is exit code 0; an exception, or an error nobody caught, 1.

const { StartError, describe } = require('./errors');
const { newContext } = require('./context');
const { scope } = require('./log');
const { invoke } = require('./load');
const { timerOf, timerEvent, timerCloudEvent, withToString } = require('./timer');

/**
 * @param {{adapter: object, env: object, logger: import('./log').Logger, guards: object, failed: Promise<never>}} o
 *   adapter has loaded the unit, whose one function is the job
 * @returns {Promise<number>} the exit code
 */
async function runJob({ adapter, env, logger, guards, failed }) {
  const [f] = adapter.functions.values();
  const { handler } = await adapter.load(f);
  const timer = timerOf(env);
  const event = timer ? timerEvent(timer) : eventOf(env);
  const abort = new AbortController();
  const run = env.FAAS_JOB_NAME || '';
  const call = {
    requestId: run || 'run',
    functionName: f.fn.name,
    traceparent: '',
    route: timer ? timer.triggerName : 'run',
    timeoutMs: f.fn.timeoutMs,
    deadline: f.fn.timeoutMs ? Date.now() + f.fn.timeoutMs : Infinity,
    signal: abort.signal,
  };
  const context = newContext(call, f.fn, adapter.facts, adapter.contextLogger);
  context.job = { run, index: Number(env.JOB_COMPLETION_INDEX) || 0, completions: f.fn.job.completions, parallelism: f.fn.job.parallelism };
  if (timer) {
    context.cloudEvent = timerCloudEvent(timer);
  }
  guards.during = 'running';
  // The process is the job's own: it may end it.
  process.exit = guards.exit;
  let stopped = false;
  const stop = () => {
    if (stopped) {
      guards.exit(143);
    }
    stopped = true;
    logger.write('warn', 'the run is being stopped');
    abort.abort();
    adapter.runPreStop().then(() => guards.exit(143));
  };
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  // With nothing left to wait for, Node would end with 0: a lie.
  process.on('beforeExit', () => {
    logger.write('error', 'the handler neither returned nor threw, and nothing is left to wait for');
    guards.exit(1);
  });
  const began = Date.now();
  logger.write('info', 'running', { unit: adapter.unit.name, index: context.job.index });
  return scope.run(call, async () => {
    let code = 0;
    try {
      await Promise.race([invoke(handler, [event, context]), failed]);
    } catch (err) {
      const d = describe(err);
      logger.write('error', d.message, { errorType: d.type, stack: d.stack || undefined });
      code = 1;
    }
    if (stopped) {
      return 143;
    }
    await adapter.runPreStop();
    logger.write(code ? 'error' : 'info', code ? 'failed' : 'done', { ms: Date.now() - began });
    return code;
  });
}

function eventOf(env) {
  try {
    return withToString(JSON.parse(env.FAAS_EVENT || '{}'));
  } catch (err) {
    throw new StartError(`FAAS_EVENT is not JSON: ${err.message}`);
  }
}

module.exports = { runJob };
