package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/kuroko-faas/kuroko/bench/internal/packages"
	"github.com/kuroko-faas/kuroko/bench/internal/services"
)

// pythonApp writes a Flask application whose wheels are made of Debian's
// packages and come from an index on loopback.
func pythonApp(ctx context.Context, b *bench, a *application) error {
	dir, err := packages.Wheels(ctx, b.debian(), b.cache)
	if err != nil {
		return err
	}
	wheels, err := services.Wheels(dir)
	if err != nil {
		return err
	}
	index, err := services.Index(dir, wheels)
	if err != nil {
		return err
	}
	b.servers = append(b.servers, index)
	var lock strings.Builder
	for _, w := range wheels {
		fmt.Fprintf(&lock, "%s==%s \\\n    --hash=sha256:%s\n", w.Name, w.Version, w.SHA256)
	}
	address := "http://" + index.Host + "/simple"
	a.about = fmt.Sprintf("%d wheels", len(wheels))
	a.packages = index
	a.changed = "lib/m%d.py"
	a.source = func(_ int, noise []string) string { return around("", "# ", noise, "", "VALUE = 1\n") }
	a.Layer = []string{"--base", a.images.base, "--pip", address, "--abi", a.images.abi, "--entry", `["/usr/bin/python3","app.py"]`}
	a.faasYML = "functions:\n  web: {handler: app.py, contract: app, events: [{http: {path: /}}]}\n"
	a.env = []string{"PIP_INDEX_URL=" + address}
	return a.write(map[string]string{
		"requirements.txt": lock.String(),
		"app.py": "import os\n\nimport flask\n\napp = flask.Flask(__name__)\n\n\n@app.route(\"/\")\ndef hello():\n    return \"HELLO WORLD\"\n\n\n" +
			"if __name__ == \"__main__\":\n    app.run(\"0.0.0.0\", int(os.environ.get(\"PORT\", \"8080\")))\n",
		"Dockerfile": "FROM " + a.images.build + "\nUSER 0\nWORKDIR /app\nCOPY requirements.txt ./\n" +
			"RUN pip install --no-cache-dir --no-compile --require-hashes --root-user-action ignore --index-url " + address + " -r requirements.txt\n" +
			"COPY . .\nENV PORT=8080\nCMD [\"python3\",\"app.py\"]\n",
	})
}
