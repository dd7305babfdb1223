package registry

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// subject pushes a small image and describes it.
func subject(t *testing.T, s *Session, repo name.Repository) v1.Descriptor {
	t.Helper()
	config, code := blobOf("{}"), blobOf("code")
	for _, b := range []Blob{config, code} {
		if _, err := s.Push(t.Context(), repo, b, nil); err != nil {
			t.Fatal(err)
		}
	}
	raw := manifestOf(config, code)
	if err := s.PutManifest(t.Context(), repo.Tag("k-1"), types.OCIManifestSchema1, raw); err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: hashOf(raw), Size: int64(len(raw))}
}

const (
	typeA = "application/vnd.example.a+json"
	typeB = "application/vnd.example.b+json"
)

func about(d v1.Descriptor, typ, content string) Artifact {
	return Artifact{Type: typ, Subject: &d, Files: []File{{MediaType: types.MediaType(typ), Title: "file.json", Data: []byte(content)}},
		Annotations: map[string]string{"kind": content}}
}

func TestReferrers(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(map[bool]string{false: "Referrers API", true: "fallback tag"}[plain], func(t *testing.T) {
			srv := registrytest.New(t)
			if plain {
				srv.WithoutReferrers()
			}
			repo, s := repoOf(t, srv, "team/app"), quick(Options{})
			d := subject(t, s, repo)
			if all, err := s.Referrers(t.Context(), repo, d.Digest, ""); err != nil || len(all) != 0 {
				t.Fatalf("before: %v, %v", all, err)
			}
			srv.Reset()
			pushed, err := s.PushArtifacts(t.Context(), repo, nil, about(d, typeA, "a"), about(d, typeB, "b"))
			if err != nil {
				t.Fatal(err)
			}
			// Three blobs in two requests each, two manifests; an index read,
			// written and read once more.
			if want, got := map[bool]int{false: 8, true: 11}[plain], srv.Requests(); len(got) != want {
				t.Errorf("%d requests, want %d: %v", len(got), want, got)
			}
			again, err := s.PushArtifacts(t.Context(), repo, func(v1.Hash) bool { return true }, about(d, typeA, "a"))
			if err != nil || again[0].Digest != pushed[0].Digest {
				t.Errorf("again: %v, %v", again, err)
			}
			all, err := s.Referrers(t.Context(), repo, d.Digest, "")
			if err != nil || len(all) != 2 {
				t.Fatalf("all: %v, %v", all, err)
			}
			only, err := s.Referrers(t.Context(), repo, d.Digest, typeB)
			if err != nil || len(only) != 1 || only[0].Digest != pushed[1].Digest || only[0].Annotations["kind"] != "b" {
				t.Fatalf("of one type: %v, %v", only, err)
			}
			got, err := s.Artifact(t.Context(), repo.Digest(only[0].Digest.String()), 100)
			if err != nil || !reflect.DeepEqual(got, about(d, typeB, "b")) {
				t.Errorf("read back %+v, %v", got, err)
			}
			if _, err := s.Artifact(t.Context(), repo.Digest(only[0].Digest.String()), 0); err == nil {
				t.Error("a file above the limit was read")
			}
			// A client that is not ours finds them too.
			idx, err := remote.Referrers(repo.Digest(d.Digest.String()))
			if err != nil {
				t.Fatal(err)
			}
			m, err := idx.IndexManifest()
			if err != nil || len(m.Manifests) != 2 {
				t.Errorf("go-containerregistry sees %+v, %v", m, err)
			}
		})
	}
}

// TestReferrersAtOnce: another job overwrites the list with one that it read
// before ours was in it.
func TestReferrersAtOnce(t *testing.T) {
	srv := registrytest.New(t)
	srv.WithoutReferrers()
	repo, s := repoOf(t, srv, "team/app"), quick(Options{})
	d := subject(t, s, repo)
	other := quick(Options{})
	theirs, err := other.PushArtifacts(t.Context(), repo, nil, about(d, typeB, "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	stale, err := other.Manifest(t.Context(), fallbackTag(repo, d.Digest))
	if err != nil {
		t.Fatal(err)
	}
	wrote := false // requests to the list come one after the other
	srv.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/sha256-") {
			return false
		}
		if r.Method == http.MethodGet && wrote {
			srv.Fault(nil)
			if err := other.PutManifest(t.Context(), fallbackTag(repo, d.Digest), stale.MediaType, stale.Raw); err != nil {
				t.Error(err)
			}
		}
		wrote = wrote || r.Method == http.MethodPut
		return false
	})
	ours, err := s.PushArtifacts(t.Context(), repo, nil, about(d, typeA, "ours"))
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.Referrers(t.Context(), repo, d.Digest, "")
	if err != nil || len(all) != 2 || all[0].Digest != theirs[0].Digest || all[1].Digest != ours[0].Digest {
		t.Errorf("%v, %v", all, err)
	}
}

func TestReferrersFail(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request) bool
		want  string
	}{
		{"denied", func(w http.ResponseWriter, r *http.Request) bool {
			denied := strings.Contains(r.URL.Path, "/referrers/")
			if denied {
				registrytest.Refuse(w, http.StatusForbidden, "DENIED", "not yours")
			}
			return denied
		}, "403"},
		{"down", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/referrers/") {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			return false
		}, "answered 502 Bad Gateway (tried 4 times)"},
		{"no list under the tag", func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case strings.Contains(r.URL.Path, "/referrers/"):
				w.WriteHeader(http.StatusNotFound)
			case strings.Contains(r.URL.Path, "/manifests/sha256-"):
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte("{}"))
			default:
				return false
			}
			return true
		}, "does not hold a list of referrers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := registrytest.New(t)
			repo, s := repoOf(t, srv, "team/app"), quick(Options{})
			d := subject(t, s, repo)
			srv.Fault(c.fault)
			_, err := s.Referrers(t.Context(), repo, d.Digest, "")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestReferrerPages(t *testing.T) {
	srv := registrytest.New(t)
	repo, s := repoOf(t, srv, "team/app"), quick(Options{})
	d := subject(t, s, repo)
	srv.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		page := r.URL.Query().Get("page")
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		if page == "" {
			w.Header().Set("Link", `<`+r.URL.Path+`?page=2>; rel="next"`)
		}
		_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + string(types.OCIManifestSchema1) + `","digest":"` + d.Digest.String() + `","size":1,"artifactType":"p` + page + `"}]}`))
		return true
	})
	all, err := s.Referrers(t.Context(), repo, d.Digest, "")
	if err != nil || len(all) != 2 || all[0].ArtifactType != "p" || all[1].ArtifactType != "p2" {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestTagAndDelete(t *testing.T) {
	srv := registrytest.New(t)
	repo, s := repoOf(t, srv, "team/app"), quick(Options{})
	d := subject(t, s, repo)
	keep := repo.Tag("keep-r1")
	if err := s.Tag(t.Context(), repo.Digest(d.Digest.String()), keep); err != nil {
		t.Fatal(err)
	}
	got, err := s.Head(t.Context(), keep, false)
	if err != nil || got.Digest != d.Digest {
		t.Fatalf("%v, %v", got, err)
	}
	for range 2 { // the second time there is nothing
		if err := s.Delete(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
	}
	srv.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	})
	if err := s.Delete(t.Context(), keep); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("a refusal: %v", err)
	}
}
