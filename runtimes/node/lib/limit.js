'use strict';

const { HttpError } = require('./errors');

/**
 * How many calls of one function run at once; the others wait in order. Zero is
 * no limit. The queue is bounded, because what waits here can't be sent to
 * another instance any more.
 */
class Limiter {
  constructor(max) {
    this.max = max;
    this.running = 0;
    this.waiting = [];
    this.maxWaiting = Math.max(100, 10 * max);
  }

  /**
   * Takes a slot.
   * @param {AbortSignal} signal gives up waiting
   * @returns {Promise<() => void>} frees the slot; calling it twice is harmless
   * @throws {HttpError} 503 when too many wait or the signal fired first
   */
  async acquire(signal) {
    if (this.max > 0 && this.running >= this.max) {
      if (this.waiting.length >= this.maxWaiting) {
        throw new HttpError(503, 'Overloaded', `the function runs ${this.max} calls at once and ${this.waiting.length} wait already`, { 'retry-after': '1' });
      }
      await new Promise((resolve, reject) => {
        const give = () => {
          signal.removeEventListener('abort', drop);
          resolve();
        };
        const drop = () => {
          this.waiting.splice(this.waiting.indexOf(give), 1);
          reject(new HttpError(503, 'Overloaded', `the function runs ${this.max} calls at once and none ended in time`, { 'retry-after': '1' }));
        };
        this.waiting.push(give);
        signal.addEventListener('abort', drop, { once: true });
      });
      // The slot was handed over by release: running stays as it was.
    } else {
      this.running++;
    }
    let held = true;
    return () => {
      if (!held) {
        return;
      }
      held = false;
      const next = this.waiting.shift();
      if (next) {
        next();
      } else {
        this.running--;
      }
    };
  }
}

module.exports = { Limiter };
