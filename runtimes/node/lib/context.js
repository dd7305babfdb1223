'use strict';

const fs = require('fs');
const os = require('os');

/**
 * What a handler gets as its second argument (third for http).
 *
 * invokedAlias is empty: the process can't know which release points at it.
 * FC's `credentials` are not provided.
 *
 * @param {object} call the running call: requestId, deadline, signal, traceparent
 * @param {import('./unit').Fn} fn
 * @param {{name: string, revision: string, service: string, image: string, key: string, mark: string, memoryMB: number}} unit
 * @param {object} logger from Logger.forContext
 */
function newContext(call, fn, unit, logger) {
  return {
    requestId: call.requestId,
    awsRequestId: call.requestId,
    functionName: fn.name,
    functionVersion: unit.revision,
    invokedAlias: '',
    memoryLimitInMB: unit.memoryMB,
    traceparent: call.traceparent,
    logger,
    /** Aborted when the request times out or its client goes away. */
    signal: call.signal,
    getRemainingTimeInMillis: () => Math.max(0, call.deadline - Date.now()),
    callbackWaitsForEmptyEventLoop: false,
    // As Alibaba FC names them; timeout in seconds.
    function: { name: fn.name, handler: fn.handler, memory: unit.memoryMB, timeout: Math.ceil(call.timeoutMs / 1000) },
    service: { name: unit.service },
    platform: { unit: unit.name, revision: unit.revision, image: unit.image, key: unit.key, mark: unit.mark, route: call.route },
  };
}

/** The memory limit of this container in MiB; the machine's memory without one. */
function memoryLimitMB() {
  let bytes = os.totalmem();
  for (const f of ['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes']) {
    try {
      const n = Number(fs.readFileSync(f, 'utf8'));
      if (n > 0) {
        bytes = Math.min(bytes, n);
      }
    } catch {
      // Not this version of cgroups.
    }
  }
  return Math.floor(bytes / 2 ** 20);
}

module.exports = { newContext, memoryLimitMB };
