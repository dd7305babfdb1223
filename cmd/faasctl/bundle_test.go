package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/oss/ossd"
	"github.com/kuroko-faas/kuroko/oss/osstest"
)

// ctl is a working directory for the bundle commands and a store.
type ctl struct {
	t   *testing.T
	dir string
	srv *osstest.Server
	env map[string]string
}

func newCtl(t *testing.T) *ctl {
	c := &ctl{t: t, dir: t.TempDir(), srv: osstest.Serve(t, ossd.PublicRead), env: map[string]string{
		"OSS_ACCESS_KEY_ID": osstest.KeyID, "OSS_ACCESS_KEY_SECRET": osstest.KeySecret, "USER": "ops",
	}}
	const ref = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, text := range map[string]string{
		"platform/bundle.yml":   "docs: https://docs.example\nruntimes:\n  python3.11: {language: node, abi: x, adapter: runtimes/node, base: b" + ref + "}\n",
		"platform/scripts/a.sh": "echo a\n",
		"runtimes/node/main.js": "//\n",
		"runner":                "\x7fELF",
	} {
		path := filepath.Join(c.dir, "checkout", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *ctl) path(name string) string { return filepath.Join(c.dir, name) }

func (c *ctl) run(args ...string) (code int, stdout, stderr string) {
	var out, log bytes.Buffer
	code = run(c.t.Context(), append([]string{"faasctl", "bundle"}, args...), func(k string) string { return c.env[k] }, &out, &log)
	return code, out.String(), log.String()
}

func (c *ctl) must(v any, args ...string) string {
	c.t.Helper()
	code, out, log := c.run(args...)
	if code != 0 {
		c.t.Fatalf("%v: exit %d\n%s", args, code, log)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			c.t.Fatalf("%v: %v in %q", args, err, out)
		}
	}
	return log
}

func (c *ctl) publish(extra ...string) []string {
	return append([]string{
		"publish", "--bundle", c.path("out"), "--store", "oss://" + osstest.Bucket + "/kuroko", "--endpoint", c.srv.Endpoint, "--region", osstest.Region,
		"--root", c.path("keys/root.json"), "--key", c.path("keys/publisher.key"), "--org", "acme", "--why", "first, and <last>",
	}, extra...)
}

func TestBundleCommands(t *testing.T) {
	c := newCtl(t)
	var keys keysMade
	c.must(&keys, "keygen", "--out", c.path("keys"))
	for _, name := range []string{"root.key", "publisher.key"} {
		in, err := os.Stat(c.path("keys/" + name))
		if err != nil || in.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, in.Mode(), err)
		}
	}
	var b built
	c.must(&b, "build", "--from", c.path("checkout"), "--out", c.path("out"), "--version", "1.0.0",
		"--runtime", "python3.11.build=build/python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		"--runner", "linux/amd64="+c.path("checkout/runner"), "--runner-version", "2.0.0")
	if !strings.HasPrefix(b.Digest, "sha256:") || b.Version != "1.0.0" || b.Files != 4 { // the schema is made
		t.Errorf("built %+v", b)
	}
	var p published
	if log := c.must(&p, c.publish("--lead", "0s", "--job", "https://ci.example/1")...); !strings.Contains(log, "may choose different bundles") {
		t.Errorf("no word about --lead 0: %q", log)
	}
	if p.Digest != b.Digest || p.Seq != 1 || p.Channel != "acme/stable" || p.Uploaded != p.Objects {
		t.Errorf("published %+v", p)
	}
	if log := c.must(&p, c.publish("--percent", "100")...); p.Seq != 2 || p.Uploaded != 0 || log != "" {
		t.Errorf("again: %+v %q", p, log)
	}
	url := c.srv.Base + "/kuroko"
	_, out, _ := c.run("status", "--url", url, "--root", c.path("keys/root.json"), "--org", "acme")
	for _, want := range []string{"acme/stable  seq 2  key set 1", "by ops: first, and <last>", "100 %", "1.0.0", "  in "} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	var d bundle.Channel
	c.must(&d, "status", "--json", "--root", c.path("keys/root.json"), "--org", "acme", "--store", "oss://"+osstest.Bucket+"/kuroko/", "--endpoint", c.srv.Endpoint, "--region", osstest.Region)
	if d.Seq != 2 || d.Who != "ops" || d.Entries[1].Why != "first, and <last>" {
		t.Errorf("status: %+v", d)
	}
	var s seeded
	c.must(&s, "seed", "--url", "https://store.example/kuroko", "--read", url, "--root", c.path("keys/root.json"), "--org", "acme", "--out", c.path("image"))
	if s.Digest != b.Digest || s.Seq != 2 {
		t.Errorf("seeded %+v", s)
	}
	platform, err := bundle.LoadPlatform(c.path("image"))
	if err != nil || platform.URL != "https://store.example/kuroko" {
		t.Fatalf("platform.json: %+v %v", platform, err)
	}
	// What was seeded works without any store.
	client := &bundle.Client{Root: platform.Root, Seed: platform.Dir, Private: t.TempDir()}
	ch, err := client.Resolve(t.Context(), bundle.Query{Org: "acme", Channel: "stable", ProjectID: 1})
	if err != nil {
		t.Fatal(err)
	}
	o, err := client.Open(t.Context(), ch)
	if err != nil || o.Meta.Runner.Version != "2.0.0" || !strings.HasPrefix(o.Meta.Runtimes["python3.11"].Build, "build/python@") {
		t.Errorf("opened %+v %v", o, err)
	}
	c.must(&s, "seed", "--empty", "--url", url, "--root", c.path("keys/root.json"), "--org", "acme", "--out", c.path("image2"))
	if es, err := os.ReadDir(c.path("image2")); err != nil || len(es) != 1 {
		t.Errorf("--empty wrote %v %v", es, err)
	}
}

func TestBundleCommandsRefuse(t *testing.T) {
	c := newCtl(t)
	c.must(nil, "keygen", "--out", c.path("keys"))
	c.must(nil, "keygen", "--out", c.path("others"))
	c.must(nil, "build", "--from", c.path("checkout"), "--out", c.path("out"))
	c.must(nil, c.publish("--lead", "0s")...)
	if err := os.WriteFile(c.path("open.key"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.path("broken/platform"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.path("broken/platform/bundle.yml"), []byte("dcos: x\nurgent: 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	private := osstest.Serve(t, ossd.Private)
	without := func(env ...string) map[string]string {
		m := map[string]string{"OSS_ACCESS_KEY_ID": osstest.KeyID, "OSS_ACCESS_KEY_SECRET": osstest.KeySecret}
		for i := 0; i+1 < len(env); i += 2 {
			m[env[i]] = env[i+1]
		}
		return m
	}
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		code int
		want string
	}{
		"no command":         {[]string{}, nil, 2, "use one of: build, keygen, publish, seed, status"},
		"no flags":           {[]string{"publish"}, nil, 2, "not given: --bundle, --store, --endpoint, --root, --key, --why"},
		"no why":             {c.publish()[:len(c.publish())-2], nil, 2, "not given: --why"},
		"keys exist":         {[]string{"keygen", "--out", c.path("keys")}, nil, 78, "nothing is overwritten"},
		"out is not empty":   {[]string{"build", "--from", c.path("checkout"), "--out", c.path("out")}, nil, 78, "is not empty"},
		"no checkout":        {[]string{"build", "--from", c.path("nowhere"), "--out", c.path("x")}, nil, 78, "check the path"},
		"broken checkout":    {[]string{"build", "--from", c.path("broken"), "--out", c.path("x")}, nil, 78, "bundle.yml: line 2, column 9: urgent: want true or false"},
		"runtime":            {[]string{"build", "--out", c.path("x"), "--runtime", "nodejs18=x"}, nil, 2, "is not NAME.base=REF"},
		"runner":             {[]string{"build", "--out", c.path("x"), "--runner", "x", "--runner-version", "1"}, nil, 2, "is not OS/ARCH=FILE"},
		"runner version":     {[]string{"build", "--out", c.path("x"), "--runner", "a/b=c"}, nil, 2, "needs --runner-version"},
		"runner's file":      {[]string{"build", "--from", c.path("checkout"), "--out", c.path("x"), "--runner", "linux/amd64=" + c.path("nowhere"), "--runner-version", "1"}, nil, 78, "nowhere"},
		"percent":            {c.publish("--percent", "0"), nil, 2, "--percent 0 is not 1 to 100"},
		"store":              {c.publish("--store", "s3://x/y"), nil, 2, "is not oss://BUCKET/PREFIX"},
		"no credentials":     {c.publish(), map[string]string{}, 78, "OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET are not both set"},
		"wrong secret":       {c.publish(), without("OSS_ACCESS_KEY_SECRET", "hush-hush"), 78, "check key, secret and the bucket's policy"},
		"read-only key":      {c.publish(), without("OSS_ACCESS_KEY_ID", osstest.ReaderID), 78, "check key, secret"},
		"no bucket":          {c.publish("--store", "oss://no-such-bucket/x"), nil, 78, "no such bucket"},
		"open key":           {c.publish("--key", c.path("open.key")), nil, 78, "chmod 600"},
		"no key":             {c.publish("--key", c.path("nowhere")), nil, 78, "nowhere"},
		"foreign key":        {c.publish("--key", c.path("others/publisher.key")), nil, 78, "may not sign channel documents"},
		"foreign key set":    {c.publish("--root", c.path("others/root.json")), nil, 78, ""},
		"no bundle":          {c.publish("--bundle", c.path("keys")), nil, 78, "build.json"},
		"status, nothing":    {[]string{"status", "--root", c.path("keys/root.json")}, nil, 2, "give --url, or --store and --endpoint"},
		"status, no channel": {[]string{"status", "--root", c.path("keys/root.json"), "--url", c.srv.Base + "/kuroko", "--channel", "nope"}, nil, 78, "check the address"},
		"status, other keys": {[]string{"status", "--root", c.path("others/root.json"), "--url", c.srv.Base + "/kuroko", "--org", "acme"}, nil, 78, "signed by 0 of 1"},
		"status, private":    {[]string{"status", "--root", c.path("keys/root.json"), "--url", private.Base, "--org", "acme"}, nil, 78, "access denied"},
		"seed, url":          {[]string{"seed", "--root", c.path("keys/root.json"), "--url", "/tmp", "--out", c.path("x")}, nil, 2, "http"},
	} {
		if tc.env != nil {
			c.env = tc.env
		} else {
			c.env = without()
		}
		code, out, log := c.run(tc.args...)
		if code != tc.code || !strings.Contains(log, tc.want) || out != "" {
			t.Errorf("%s: exit %d, stdout %q, stderr:\n%s", name, code, out, log)
		}
		if strings.Contains(log, "hush-hush") {
			t.Errorf("%s: the secret is in the log", name)
		}
	}
	if _, err := os.Stat(c.path("x")); err == nil {
		t.Error("a refused build left its folder")
	}
}

func TestPublishWhileDown(t *testing.T) {
	c := newCtl(t)
	c.must(nil, "keygen", "--out", c.path("keys"))
	c.must(nil, "build", "--from", c.path("checkout"), "--out", c.path("out"))
	c.srv.SetFault(ossd.Always(ossd.Fault{Status: 403, Code: "AccessDenied"}))
	if code, _, log := c.run(c.publish()...); code != 78 {
		t.Errorf("denied: exit %d\n%s", code, log)
	}
	c.srv.Close()
}

func TestRegion(t *testing.T) {
	for _, tc := range []struct{ given, endpoint, want string }{
		{"", "https://oss-cn-hangzhou.aliyuncs.com", "cn-hangzhou"},
		{"", "https://oss-cn-hangzhou-internal.aliyuncs.com", "cn-hangzhou"},
		{"cn-beijing", "https://oss-cn-hangzhou.aliyuncs.com", "cn-beijing"},
		{"", "http://127.0.0.1:9000", ""},
		{"", "https://oss-x.example", ""},
	} {
		if got := region(tc.given, tc.endpoint); got != tc.want {
			t.Errorf("region(%q, %q) = %q, want %q", tc.given, tc.endpoint, got, tc.want)
		}
	}
}
