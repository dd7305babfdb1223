// As Google's HTTP functions are exported (without the framework's registration).
exports.helloHttp = (req, res) => {
  res.send(`Hello ${req.query.name || req.body.name || 'World'}!`);
};
