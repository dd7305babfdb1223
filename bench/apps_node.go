package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kuroko-faas/kuroko/bench/internal/measure"
	"github.com/kuroko-faas/kuroko/bench/internal/services"
)

// nodeDependencies are what package.json depends on, by application. Versions
// are exact; those below them are the registry's of the day on which the lock
// file was made, which is kept in the cache.
var nodeDependencies = map[string]map[string]string{
	"node-small": {"express": "4.21.2", "lodash": "4.17.21"},
	"node-270": {
		"typescript": "5.6.3", "webpack": "5.96.1", "typeorm": "0.3.20", "rxjs": "7.8.1", "date-fns": "4.1.0", "axios": "1.7.9", "express": "4.21.2",
		"lodash": "4.17.21",
	},
}

// nodeApp writes a Node.js application, with the lock file that npm makes.
func nodeApp(ctx context.Context, b *bench, a *application) error {
	registry, err := b.npmCache(ctx)
	if err != nil {
		return err
	}
	manifest, err := json.MarshalIndent(map[string]any{"name": a.Name, "version": "1.0.0", "private": true, "dependencies": nodeDependencies[a.Name]}, "", "  ")
	if err != nil {
		return err
	}
	address := "http://" + registry.Host + "/"
	a.packages = registry
	a.changed = "lib/m%d.js"
	a.source = func(_ int, noise []string) string { return around("", "// ", noise, "", "module.exports = {};\n") }
	a.Layer = []string{"--base", a.images.base, "--npm", address, "--entry", `["/usr/bin/node","index.js"]`}
	a.faasYML = "functions:\n  web: {handler: index.js, contract: app, events: [{http: {path: /}}]}\n"
	a.env = []string{"npm_config_registry=" + address}
	err = a.write(map[string]string{
		"package.json": string(manifest) + "\n",
		"index.js": "const http = require('http');\nconst app = require('express')();\n" +
			"app.get('/', (q, s) => s.send('HELLO WORLD'));\nhttp.createServer(app).listen(process.env.PORT || 8080);\n",
		"Dockerfile": "FROM " + a.images.build + "\nUSER 0\nWORKDIR /app\nCOPY package.json package-lock.json ./\n" +
			"RUN npm ci --omit=dev --no-audit --no-fund --registry=" + address + "\nCOPY . .\nENV PORT=8080\nCMD [\"node\",\"index.js\"]\n",
	})
	if err != nil {
		return err
	}
	n, err := lockFile(ctx, a.Dir, b.cache, address)
	a.about = fmt.Sprintf("%d packages", n)
	return err
}

// npmCache is the read-through cache of the machine's npm registry.
func (b *bench) npmCache(ctx context.Context) (*services.Server, error) {
	if b.npm != nil {
		return b.npm, nil
	}
	out, err := exec.CommandContext(ctx, "npm", "config", "get", "registry").Output()
	if err != nil {
		return nil, fmt.Errorf("npm is needed, to make lock files: npm config get registry: %w", err)
	}
	b.npm, err = services.Cache(strings.TrimSpace(string(out)), filepath.Join(b.cache, "npm"))
	return b.npm, err
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
		if _, err := measure.Command(ctx, []string{"npm_config_registry=" + registry}, "npm", "install", "--package-lock-only", "--no-audit", "--no-fund",
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
