package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

const withSecrets = `version: 1
service: shop
provider: {runtime: nodejs18, secrets: {TOKEN: shop/token}}
deploy: {mode: independent}
functions:
  a: {handler: a.handler, secrets: {DB: shop/db-a}}
  b: {handler: b.handler, secrets: {DB: other/db, CA: {secret: certs, key: ca.pem, path: /etc/ca.pem}}}
`

func secretProject(t *testing.T, text string) *project.Project {
	t.Helper()
	p, err := project.Parse([]byte(text), project.Options{Environment: "test", Runtimes: []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSecretNamed(t *testing.T) {
	p := secretProject(t, withSecrets)
	for _, c := range []struct{ name, want string }{
		{"TOKEN", "shop/token"},
		{"CA", "certs/ca.pem"},
		{"shop/db-a", "shop/db-a"},
		{"DB", "it is other/db in one unit and shop/db-a in another"},
		{"token", "faas.yml names no such secret in this environment"},
		{"shop/other", "no such secret"},
	} {
		k, err := secretNamed(p, c.name)
		got := k.Secret + "/" + k.Key
		var e *usererr.Error
		if errors.As(err, &e) {
			got = e.Err.Error()
			if e.Next == "" || usererr.Exit(err) != 2 {
				t.Errorf("%s: next %q, exit %d", c.name, e.Next, usererr.Exit(err))
			}
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	none := secretProject(t, "version: 1\nservice: shop\nprovider: {runtime: nodejs18}\nfunctions: {a: {handler: a.handler}}\n")
	if _, err := secretNamed(none, "TOKEN"); err == nil || !strings.Contains(usererr.Of(err).Next, "provider.secrets: {TOKEN:") {
		t.Errorf("no secrets at all: %v", err)
	}
}

func TestSecretRows(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	own := []deployer.SecretKey{{Secret: "shop", Key: "old"}, {Secret: "shop", Key: "token", By: "ann on laptop", At: at}}
	var got []string
	for _, r := range secretRows(secretProject(t, withSecrets), own, map[deployer.Source]string{"secret/shop": "1", "secret/certs": "2"}) {
		got = append(got, fmt.Sprintf("%s %s/%s %s %s", r.Name, r.Secret, r.Key, r.State, r.By))
	}
	want := `CA certs/ca.pem kept by others 
DB other/db missing 
DB shop/db-a missing 
TOKEN shop/token set ann on laptop
 shop/old set `
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
}

func TestSecretValue(t *testing.T) {
	for in, want := range map[string]string{
		"s3cret":                          "s3cret",
		"s3cret\n":                        "s3cret",
		"s3cret\r\n":                      "s3cret",
		" s3cret \n":                      " s3cret ",
		"a\nb\n":                          "a\nb\n",
		"s3cret\n\n":                      "s3cret\n\n",
		"\x00\xff\x01":                    "\x00\xff\x01",
		"":                                "error: standard input is empty",
		"\n":                              "error: standard input is empty",
		string(make([]byte, maxSecret+1)): "error: it is longer than 256 KiB",
	} {
		var log bytes.Buffer
		value, err := command{stdin: strings.NewReader(in), stderr: &log}.secretValue("TOKEN")
		got := string(value)
		if err != nil {
			got = "error: " + usererr.Of(err).Err.Error()
		}
		if got != want || log.Len() > 0 {
			t.Errorf("%.20q: got %.40q, want %q; log %q", in, got, want, log.String())
		}
	}
}

// A webhook may repeat what it refused; a person's terminal does not.
func TestMasked(t *testing.T) {
	said := errors.New(`admission webhook "policy" denied the request: value s3cret-value is too weak (czNjcmV0LXZhbHVl)`)
	err := masked(&usererr.Error{Code: usererr.CodeUsage, Err: said, Problems: []usererr.Problem{{Why: said.Error(), Next: "not s3cret-value"}}}, []byte("s3cret-value"))
	var b strings.Builder
	fmt.Fprint(&b, err, usererr.Of(err).Problems)
	if s := b.String(); strings.Contains(s, "s3cret-value") || strings.Contains(s, "czNjcmV0LXZhbHVl") || !strings.Contains(s, "is too weak") {
		t.Errorf("got %s", s)
	}
}
