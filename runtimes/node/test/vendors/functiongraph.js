// As Huawei FunctionGraph behind APIG.
exports.handler = async (event, context) => {
  const output = { statusCode: 200, headers: { 'Content-Type': 'application/json' }, isBase64Encoded: false, body: JSON.stringify(event.pathParameters) };
  return output;
};
