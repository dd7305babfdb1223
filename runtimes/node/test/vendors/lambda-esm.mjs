// As AWS Lambda's newer examples: an ES module that returns a plain value.
export const handler = async (event) => `Hello from ${event.rawPath}`;
