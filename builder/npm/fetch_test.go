package npm

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
)

func TestHostileArchives(t *testing.T) {
	file := tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}
	named := func(n string) tar.Header { h := file; h.Name = n; return h }
	var many []any
	for i := range 30 {
		many = append(many, named(fmt.Sprintf("package/%d", i)), "")
	}
	limits := fetch.Limits{Archive: 1 << 20, Package: 1 << 20, Files: 20}
	for name, tt := range map[string]struct {
		archive []byte
		want    string
	}{
		"upwards":     {archive(named("package/../../etc/passwd"), "x"), `it holds the name "package/../../etc/passwd"`},
		"absolute":    {archive(named("/etc/passwd"), "x"), `it holds the absolute name "/etc/passwd"`},
		"not text":    {archive(named("package/\xff"), "x"), `a name in it is not text: "package/\xff"`},
		"bomb":        {archive(named("package/zeros"), strings.Repeat("\x00", 3<<20)), "it unpacks to more than 1048576 bytes"},
		"header bomb": {archive(many...), "it has more than 20 files"},
		"link bomb":   {archive(tar.Header{Typeflag: tar.TypeSymlink, Name: "package/l", Linkname: strings.Repeat("a/", 1<<18)}, ""), ""},
		"too long":    {archive(named("package/"+strings.Repeat("n/", 3000)+"f"), "x"), "a name in it has 6009 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := npmtest.Start(t, npmtest.Package{Name: "p", Version: "1.0.0", Archive: tt.archive})
			manifest := `{"dependencies":{"p":"*"}}`
			got, _, err := install(t, &Fetcher{Registry: reg.URL, Limits: limits}, manifest, reg.Lock(manifest))
			if tt.want == "" {
				if err == nil && len(got) != 3 || err != nil && !errors.Is(err, ErrNeedsInstaller) {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			var pe *fetch.PackageError
			if !errors.As(err, &pe) || !errors.Is(err, fetch.ErrHostile) || !strings.Contains(err.Error(), tt.want) || pe.Package != "p@1.0.0" {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("total", func(t *testing.T) {
		reg := npmtest.Start(t, npmtest.Generate(4, 2, 100_000)...)
		manifest := `{"dependencies":{"generated-0":"*"}}`
		_, _, err := install(t, &Fetcher{Registry: reg.URL, Limits: fetch.Limits{Total: 500_000}}, manifest, reg.Lock(manifest))
		if !errors.Is(err, fetch.ErrHostile) {
			t.Errorf("got %v", err)
		}
	})
}

func TestWrongIntegrity(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	manifest := `{"dependencies":{"plain":"1.0.0"}}`
	lock := edit(t, reg.Lock(manifest), func(p map[string]map[string]any) {
		p["node_modules/plain"]["integrity"] = reg.Integrity("plain", "2.0.0")
	})
	_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock)
	if !errors.Is(err, ErrIntegrity) || !strings.HasPrefix(err.Error(), "plain@1.0.0 from 127.0.0.1:") {
		t.Errorf("got %v", err)
	}
	// The strongest algorithm decides, whatever a weaker one says.
	lock = edit(t, reg.Lock(manifest), func(p map[string]map[string]any) {
		p["node_modules/plain"]["integrity"] = "sha1-qUiVOwx6dbyFSQhXCrIuy10j9i4= " + reg.Integrity("plain", "1.0.0")
	})
	if _, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock); err != nil {
		t.Error(err)
	}
}

func TestAddressFollowsTheConfiguredRegistry(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	manifest := `{"dependencies":{"plain":"1.0.0","@scope/tool":"1.2.3"}}`
	lock := edit(t, reg.Lock(manifest), func(p map[string]map[string]any) {
		p["node_modules/plain"]["resolved"] = "https://elsewhere.example.test/plain/-/plain-1.0.0.tgz"
	})
	other := npmtest.Start(t, zoo()...)
	if _, _, err := install(t, &Fetcher{Registry: reg.URL, Scopes: map[string]string{"@scope": other.URL + "/"}}, manifest, lock); err != nil {
		t.Fatal(err)
	}
	if r := other.Requests(); len(r) != 1 || r[0] != "/@scope/tool/-/tool-1.2.3.tgz" {
		t.Errorf("the scope's registry was asked for %v", r)
	}
	// A registry with addresses of its own is asked for them.
	reg.Reset()
	reg.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/-/plain-1.0.0.tgz") && r.Header.Get("Referer") == "" && !r.URL.Query().Has("real") {
			http.NotFound(w, r)
			return true
		}
		if r.URL.Path == "/plain" {
			fmt.Fprintf(w, `{"versions":{"1.0.0":{"dist":{"tarball":"%s/plain/-/plain-1.0.0.tgz?real"}}}}`, reg.URL)
			return true
		}
		return false
	})
	if _, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock); err != nil {
		t.Error(err)
	}
	// Neither there nor described: the version is not published.
	reg.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "plain-1.0.0") {
			http.NotFound(w, r)
			return true
		}
		return false
	})
	if _, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock); !errors.Is(err, ErrNotPublished) {
		t.Errorf("got %v", err)
	}
}

func TestCredentialsOnlyForOwnHosts(t *testing.T) {
	cdn := npmtest.Start(t, zoo()...)
	var leaked atomic.Bool
	cdn.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "")
		return false
	})
	reg := npmtest.Start(t, zoo()...)
	reg.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.Header.Get("Authorization") != "Bearer t0ken":
			w.WriteHeader(http.StatusUnauthorized)
		case strings.HasSuffix(r.URL.Path, ".tgz"):
			http.NotFound(w, r)
		default:
			fmt.Fprintf(w, `{"versions":{"1.0.0":{"dist":{"tarball":"%s/plain/-/plain-1.0.0.tgz"}}}}`, cdn.URL)
		}
		return true
	})
	manifest := `{"dependencies":{"plain":"1.0.0"}}`
	lock := cdn.Lock(manifest)
	f := &Fetcher{Registry: reg.URL, Source: fetch.Source{Authorize: func(r *http.Request) { r.Header.Set("Authorization", "Bearer t0ken") }}}
	if _, _, err := install(t, f, manifest, lock); err != nil {
		t.Error(err)
	}
	if leaked.Load() {
		t.Error("credentials went to another host")
	}
	_, _, err := install(t, &Fetcher{Registry: reg.URL}, manifest, lock)
	if fe := (*fetch.Error)(nil); !errors.As(err, &fe) || fe.Status != 401 || fe.Attempts != 1 {
		t.Errorf("got %v", err)
	}
}

func TestRegistryFaults(t *testing.T) {
	manifest := `{"dependencies":{"plain":"1.0.0"}}`
	for name, tt := range map[string]struct {
		times int32
		f     http.HandlerFunc
		want  string
	}{
		"503 twice":         {2, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, ""},
		"429 once":          {1, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Retry-After", "0"); w.WriteHeader(429) }, ""},
		"breaks off once":   {1, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, ""},
		"503 for ever":      {99, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, "answered 503 (tried 4 times)"},
		"hangs up for ever": {99, func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, "EOF (tried 4 times)"},
		"asks to wait hours": {99, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "7200")
			w.WriteHeader(429)
		}, "answered 429"},
		"stands still": {99, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no byte arrived for too long (tried 4 times)"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := npmtest.Start(t, zoo()...)
			var n atomic.Int32
			reg.Fault(func(w http.ResponseWriter, r *http.Request) bool {
				if n.Add(1) > tt.times {
					return false
				}
				tt.f(w, r)
				return true
			})
			f := &Fetcher{Registry: reg.URL}
			if name == "stands still" {
				f.Idle = 10 * time.Millisecond
			}
			_, _, err := install(t, f, manifest, reg.Lock(manifest))
			var fe *fetch.Error
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (!errors.As(err, &fe) || !strings.HasSuffix(err.Error(), tt.want)):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	_, _, err := install(t, &Fetcher{Registry: "http://127.0.0.1:1"}, manifest, npmtest.New(zoo()...).Lock(manifest))
	if fe := (*fetch.Error)(nil); !errors.As(err, &fe) || fe.Host != "127.0.0.1:1" {
		t.Errorf("got %v", err)
	}
}

func TestCache(t *testing.T) {
	reg := npmtest.Start(t, zoo()...)
	manifest := `{"dependencies":{"plain":"1.0.0"}}`
	lock := reg.Lock(manifest)
	dir := filepath.Join(t.TempDir(), "cache")
	f := &Fetcher{Registry: reg.URL, Cache: dir}
	_, want, err := install(t, f, manifest, lock)
	if err != nil {
		t.Fatal(err)
	}
	reg.Reset()
	if _, got, err := install(t, f, manifest, lock); err != nil || got != want || len(reg.Requests()) != 0 {
		t.Errorf("with a cache: %v, %v, %v", got, err, reg.Requests())
	}
	// A damaged entry is fetched again, and mended.
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.tgz"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], []byte("poison"), 0o600); err != nil {
		t.Fatal(err)
	}
	for wantRequests := 1; wantRequests >= 0; wantRequests-- {
		reg.Reset()
		if _, got, err := install(t, f, manifest, lock); err != nil || got != want || len(reg.Requests()) != wantRequests {
			t.Errorf("after damage: %v, %v, %v", got, err, reg.Requests())
		}
	}
	// A cache that can't be written to does not matter.
	f.Cache = "/dev/null/cache"
	if _, got, err := install(t, f, manifest, lock); err != nil || got != want {
		t.Errorf("without a usable cache: %v, %v", got, err)
	}
}
