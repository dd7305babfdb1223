'use strict';

// The entry of a Node.js function image: reads the unit's handler table,
// listens on PORT, loads every handler, runs init hooks, becomes ready. What
// stops it from becoming ready is one line on stderr and exit code 1. A job's
// image runs its handler once instead, and a timer's container makes one call.
// See README.md for the environment it reads.

const { installGuards } = require('./lib/guard');
const { Logger } = require('./lib/log');
const { start } = require('./lib/adapter');
const { describe } = require('./lib/errors');

const logger = new Logger({ out: process.stdout, revision: process.env.K_REVISION || '' });
const guards = installGuards(logger);

start({ env: process.env, cwd: process.cwd(), home: __dirname, logger, guards }).then((code) => {
  if (code !== undefined) {
    guards.exit(code);
  }
}, (err) => {
  logger.fatal(process.stderr, describe(err));
  guards.exit(1);
});
