'use strict';
// As Tencent SCF behind an API gateway.
exports.main_handler = async (event, context) => {
  return { isBase64Encoded: false, statusCode: 200, headers: { 'Content-Type': 'text/html' }, body: `<h1>${event.headers['x-title']}</h1>` };
};
