package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestImport(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	faas := func(args ...string) (int, string, string) {
		var out, log bytes.Buffer
		code := run(t.Context(), append([]string{"faas", "import"}, args...), nil, nil, strings.NewReader(""), &out, &log)
		return code, out.String(), log.String()
	}
	good := write("serverless.yml", "service: shop\nprovider: {name: aws, runtime: nodejs18.x, region: here}\nfunctions:\n  hello: {handler: index.hello, events: [{http: GET /hello}]}\n")
	code, out, log := faas(good)
	if code != 0 || !strings.HasPrefix(out, "version: 1\nservice:\n") || strings.Count(log, "\n") != 2 || !strings.Contains(log, "serverless.yml: line 2: provider.region: ") {
		t.Errorf("exit %d\n%s%s", code, out, log)
	}
	// What a person must add is an error, after the file.
	code, out, log = faas(write("func.yaml", "specVersion: 0.36.0\nname: fast\nruntime: go\n"))
	if code != 1 || !strings.Contains(out, "fast:") || !strings.Contains(log, "provider.runtime: is required") {
		t.Errorf("exit %d\n%s%s", code, out, log)
	}
	for _, args := range [][]string{{}, {good, good}, {filepath.Join(dir, "none.yml")}, {write("other.yml", "kind: Pod\n")}, {"--from", "nothing", good}} {
		if code, out, log := faas(args...); code != 2 || out != "" || !strings.Contains(log, "E1101") {
			t.Errorf("%q: exit %d\n%s%s", args, code, out, log)
		}
	}
}

// What the program prints is the file that the bundle has.
func TestSchema(t *testing.T) {
	l := newLab(t)
	code, out, log := l.faas("schema")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, log)
	}
	var schema struct {
		Title string         `json:"title"`
		Defs  map[string]any `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(out), &schema); err != nil || schema.Title == "" || len(schema.Defs) == 0 || !strings.Contains(out, `"nodejs18"`) {
		t.Errorf("%v, title %q, %d definitions", err, schema.Title, len(schema.Defs))
	}
	data, err := os.ReadFile(filepath.Join(l.runner(&bytes.Buffer{}).Bundle.Dir, "schema", "faas-v1.json"))
	if err != nil || string(data) != out {
		t.Errorf("the bundle's file differs from what is printed (%v)", err)
	}
}
