// As Vercel's Node.js functions: (req, res) with a default export.
module.exports = (req, res) => {
  const { name = 'World' } = req.query;
  res.status(201).json({ hello: name, body: req.body });
};
