package npm

import (
	"archive/tar"
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
)

func FuzzLock(f *testing.F) {
	reg := npmtest.New(zoo()...)
	f.Add(zooManifest, reg.Lock(zooManifest))
	f.Add(`{"dependencies":{"a":"1"}}`, `{"lockfileVersion":2,"packages":{"":{},"node_modules/a":{"version":"1.0.0","bin":"x","os":"linux","dependencies":{"a":"*"}}}}`)
	f.Add(`{}`, `{"lockfileVersion":3,"packages":{"x/node_modules/@a/b":{"link":true,"resolved":"x"}}}`)
	f.Fuzz(func(t *testing.T, manifest, lock string) {
		l, err := Parse([]byte(manifest), []byte(lock))
		if err != nil {
			return
		}
		plan, err := l.Plan(LinuxX64)
		if err != nil {
			return
		}
		for _, p := range plan.Packages {
			if !filepath.IsLocal(p.Place) || !strings.HasPrefix(p.Place, "node_modules/") || strings.Contains(p.Name, "..") && !validName(p.Name) || p.Version == "" {
				t.Errorf("unsafe package %+v", p)
			}
		}
		for place, file := range plan.bins {
			if !filepath.IsLocal(place) || !filepath.IsLocal(file) || !strings.HasPrefix(file, "node_modules/") || filepath.Base(filepath.Dir(place)) != ".bin" {
				t.Errorf("unsafe link %q to %q", place, file)
			}
		}
	})
}

func FuzzArchive(f *testing.F) {
	for _, p := range zoo() {
		r := npmtest.New(p)
		if p.Archive != nil {
			f.Add(p.Archive)
		}
		_ = r
	}
	f.Add(archive(tar.Header{Typeflag: tar.TypeReg, Name: "package/../../x"}, "y"))
	f.Add(archive(tar.Header{Typeflag: tar.TypeReg, Name: "package/.gitignore"}, "y", tar.Header{Typeflag: tar.TypeDir, Name: "package/.gitignore/"}, ""))
	f.Add(compress([]byte("no tar")))
	limits := (&Fetcher{Limits: fetch.Limits{Package: 1 << 16, Files: 50}}).limits()
	f.Fuzz(func(t *testing.T, b []byte) {
		data := &layer.Spool{}
		defer data.Close()
		u, err := unpack(bytes.NewReader(b), data, limits)
		if err != nil {
			if !errors.Is(err, fetch.ErrHostile) && !errors.Is(err, errUnreadable) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if data.Len() > limits.Package {
			t.Errorf("%d bytes were unpacked", data.Len())
		}
		for _, file := range u.files {
			if !filepath.IsLocal(file.path) || file.off+file.size > data.Len() || file.size < 0 {
				t.Errorf("unsafe file %+v", file)
			}
		}
	})
}
