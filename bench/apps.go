package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
)

// nodeApps are the Node.js applications by name: what package.json depends on.
// Versions are exact; those below them are the registry's of the day on which
// the lock file was made, which is kept in the cache.
var nodeApps = map[string]map[string]string{
	"node-small": {"express": "4.21.2", "lodash": "4.17.21"},
	"node-270": {
		"typescript": "5.6.3", "webpack": "5.96.1", "typeorm": "0.3.20", "rxjs": "7.8.1", "date-fns": "4.1.0", "axios": "1.7.9", "express": "4.21.2",
		"lodash": "4.17.21",
	},
}

// sources is how many files of code an application has beside its entry.
const sources = 42

// nodeApp writes an application into dir, with the lock file that npm makes.
func nodeApp(dir, name, registry, base string) error {
	manifest, err := json.MarshalIndent(map[string]any{"name": name, "version": "1.0.0", "private": true, "dependencies": nodeApps[name]}, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{
		"package.json": string(manifest) + "\n",
		"index.js": "const http = require('http');\nconst app = require('express')();\n" +
			"app.get('/', (q, s) => s.send('HELLO WORLD'));\nhttp.createServer(app).listen(process.env.PORT || 8080);\n",
		"Dockerfile": fmt.Sprintf("FROM %s\nUSER 0\nWORKDIR /app\nCOPY package.json package-lock.json ./\n"+
			"RUN npm ci --omit=dev --no-audit --no-fund --registry=http://%s/\nCOPY . .\nENV PORT=8080\nCMD [\"node\",\"index.js\"]\n", base, registry),
	}
	for i := range sources {
		text, err := noise()
		if err != nil {
			return err
		}
		files[fmt.Sprintf("lib/m%d.js", i)] = text
	}
	for f, text := range files {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lockFile makes package-lock.json, or takes the one made before.
func lockFile(ctx context.Context, dir, cache, registry string) (packages int, err error) {
	lock := filepath.Join(dir, "package-lock.json")
	manifest, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if err != nil {
		return 0, err
	}
	kept := filepath.Join(cache, fmt.Sprintf("package-lock-%.12x.json", sha256.Sum256(manifest)))
	data, err := os.ReadFile(kept)
	if err != nil {
		if _, err := measure.Command(ctx, []string{"npm_config_registry=http://" + registry + "/"}, "npm", "install", "--package-lock-only", "--no-audit", "--no-fund",
			"--omit-lockfile-registry-resolved", "--ignore-scripts", "--prefix", dir); err != nil {
			return 0, fmt.Errorf("make the lock file: %w", err)
		}
		if data, err = os.ReadFile(lock); err != nil {
			return 0, err
		}
		if err := os.WriteFile(kept, data, 0o644); err != nil {
			return 0, err
		}
	}
	var l struct {
		Packages map[string]struct{ Dev, Optional bool }
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return 0, err
	}
	return len(l.Packages) - 1, os.WriteFile(lock, data, 0o644)
}

// noise is a source file of some 5 KB that no cache has seen.
func noise() (string, error) {
	raw := make([]byte, 3600)
	if _, err := rand.Read(raw); err != nil {
		return "", err
	}
	var b strings.Builder
	text := base64.StdEncoding.EncodeToString(raw)
	for i := 0; i < len(text); i += 76 {
		b.WriteString("// " + text[i:min(i+76, len(text))] + "\n")
	}
	b.WriteString("module.exports = {};\n")
	return b.String(), nil
}

// change gives one source file other content.
func change(dir string) error {
	text, err := noise()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "lib", "m7.js"), []byte(text), 0o644)
}
