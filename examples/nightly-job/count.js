'use strict';

// Counts the words of the texts that this completion of the run has to do:
// every completions-th one, from its own index on. The texts come in the
// timer's payload, or in the event of `faas run count --event '{"texts": […]}'`.
exports.handler = async (event, context) => {
  const { texts = [] } = event.payload === undefined ? event : JSON.parse(event.payload);
  const { index, completions } = context.job;
  let words = 0;
  texts.filter((_, i) => i % completions === index).forEach((text) => {
    if (typeof text !== 'string') {
      throw new TypeError(`not a text: ${JSON.stringify(text)}`); // the run tries once more, then fails
    }
    words += text.split(/\s+/).filter(Boolean).length;
  });
  console.log(`part ${index + 1} of ${completions}: ${words} words`);
  return words;
};
