//go:build api

package knative_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// A release stands whole in the registry too, with a tag for itself and one
// for each image; a record too large for a ConfigMap is read from there. The
// tags go with the release, and the images stay.
func TestReleaseInTheRegistry(t *testing.T) {
	c := lab(t)
	scope := scopeIn(c.namespace(t))
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	var mode atomic.Value // "", readonly, deletes-manifests, down
	mode.Store("")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := mode.Load()
		switch {
		case m == "down", m == "readonly" && r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.WriteHeader(http.StatusForbidden)
			return
		case m == "deletes-manifests" && r.Method == http.MethodDelete:
			// Whatever the tag names is gone, under every name.
			at := r.URL.Path[:strings.LastIndex(r.URL.Path, "/")+1]
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, httptest.NewRequest(http.MethodHead, r.URL.Path, nil))
			inner.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodDelete, at+rec.Header().Get("Docker-Content-Digest"), nil))
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("built"), empty.Image); err != nil {
		t.Fatal(err)
	}
	digest, _ := empty.Image.Digest()
	image := repo.Digest(digest.String())
	var notes []string
	k, err := knative.New(knative.Config{REST: c.rest, Artefacts: true, Notice: func(s string) { notes = append(notes, s) }})
	if err != nil {
		t.Fatal(err)
	}
	f := lease(t, k, scope)
	release := func(id string, units, noise int) deployer.Release {
		r := deployer.Release{ID: id, Scope: scope, Commit: "c"}
		for i := range units {
			u := apiUnit(t, fmt.Sprint("u", i), "1")
			u.Image = image
			for range noise {
				u.Table += rand.Text()
			}
			r.Units = append(r.Units, deployer.Live{Unit: u.Unit, Revision: u.RevisionName(1), Image: image.String(), Spec: u})
		}
		return r
	}
	tags := func() []string {
		t.Helper()
		all, err := remote.List(repo)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(all, func(s string) bool { return s == "built" })
	}
	record := func(id string) *corev1.ConfigMap {
		t.Helper()
		m, err := c.kube.CoreV1().ConfigMaps(scope.Namespace).Get(t.Context(), "app.test."+id, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	small, large := release("r1", 2, 1), release("r2", 60, 100) // what can't be compressed away
	for _, r := range []deployer.Release{small, large} {
		if err := k.CreateRelease(t.Context(), f, r); err != nil {
			t.Fatalf("%s: %v", r.ID, err)
		}
		got, err := k.Release(t.Context(), scope, r.ID)
		if err != nil || len(got.Units) != len(r.Units) || got.Units[1].Spec.Hash() != r.Units[1].Spec.Hash() {
			t.Fatalf("%s read back: %d units, %v", r.ID, len(got.Units), err)
		}
		full, err := name.NewDigest(record(r.ID).Annotations["kuroko.dev/artefact"])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := remote.Image(full); err != nil {
			t.Errorf("%s: the artefact that it names: %v", r.ID, err)
		}
	}
	if m := record("r2"); m.BinaryData["release.json.gz"] != nil || !strings.Contains(string(m.BinaryData["index.json"]), `"app-u59-`) {
		t.Errorf("r2's config map has %d keys; want an index alone", len(m.BinaryData))
	}
	short := strings.TrimPrefix(digest.String(), "sha256:")[:12]
	if got, want := tags(), []string{"keep-app.test-r1-" + short, "keep-app.test-r2-" + short, "release-app.test-r1", "release-app.test-r2"}; !slices.Equal(got, want) || len(notes) > 0 {
		t.Errorf("tags %q, notes %q; want %q, none", got, notes, want)
	}

	mode.Store("down")
	if _, err := k.Release(t.Context(), scope, "r2"); !errors.Is(err, deployer.ErrUnavailable) {
		t.Errorf("read without its registry: %v", err)
	}
	if _, err := k.Release(t.Context(), scope, "r1"); err != nil {
		t.Errorf("a small record needs no registry: %v", err)
	}
	mode.Store("deletes-manifests")
	if err := k.RemoveRelease(t.Context(), f, "r2"); err != nil {
		t.Error(err)
	}
	mode.Store("")
	if _, err := remote.Head(image); err != nil {
		t.Errorf("the image went with a tag: %v", err)
	}
	if got := tags(); slices.Contains(got, "release-app.test-r2") || slices.Contains(got, "keep-app.test-r2-"+short) {
		t.Errorf("tags %q after r2 was removed", got)
	}

	// A registry that refuses: said, and no reason against a deploy, unless
	// the record has no other place.
	mode.Store("readonly")
	small.ID, large.ID = "r3", "r4"
	if err := k.CreateRelease(t.Context(), f, small); err != nil || len(notes) != 1 || !strings.Contains(notes[0], "answered 403 Forbidden") {
		t.Errorf("read-only registry: %v, notes %q", err, notes)
	}
	if m := record("r3"); m.Annotations["kuroko.dev/artefact-note"] == "" || m.Annotations["kuroko.dev/artefact"] != "" {
		t.Errorf("annotations %v; want the note alone", m.Annotations)
	}
	if err := k.CreateRelease(t.Context(), f, large); err == nil || !strings.Contains(err.Error(), "the registry does not hold it") {
		t.Errorf("a large record without a registry: %v", err)
	}
}
