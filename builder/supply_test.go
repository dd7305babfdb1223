package builder_test

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/registry"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

func origin(commit string) *attest.Provenance {
	return &attest.Provenance{
		Builder: "https://kuroko.example/stage-runner", BuildType: "https://kuroko.example/layers/v1",
		Parameters: map[string]any{"environment": "prod"},
		Materials:  []attest.Material{{Name: "source", URI: "git+https://gitlab.example/team/app", Digest: map[string]string{"gitCommit": commit}}},
		Started:    time.Unix(1700000000, 0),
	}
}

// beside reads the documents about an image with go-containerregistry's
// client: predicate to content.
func beside(t *testing.T, ref name.Digest) map[string][]byte {
	t.Helper()
	idx, err := remote.Referrers(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, d := range m.Manifests {
		a, err := registry.New(registry.Options{}).Session().Artifact(t.Context(), ref.Context().Digest(d.Digest.String()), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if a.Subject == nil || a.Subject.Digest.String() != ref.DigestStr() || len(a.Files) != 1 {
			t.Errorf("%+v", a)
		}
		out[a.Annotations[attest.Annotation]] = a.Files[0].Data
	}
	return out
}

// baseBOM stores a bill of materials beside the base.
func (w *world) baseBOM(t *testing.T) {
	t.Helper()
	pushBOM(t, w.base, attest.BOM{Name: "base/nodejs18", Components: []attest.Component{{Type: "deb", Namespace: "debian", Name: "libc6", Version: "2.36-9", Arch: "amd64", Layer: "base"}}})
}

// pushBOM stores a bill of materials beside an image.
func pushBOM(t *testing.T, ref name.Digest, bom attest.BOM) {
	t.Helper()
	raw, err := bom.JSON()
	if err != nil {
		t.Fatal(err)
	}
	s := registry.New(registry.Options{}).Session()
	d, err := s.Head(t.Context(), ref, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PushArtifacts(t.Context(), ref.Context(), nil, registry.Artifact{Type: attest.TypeBOM, Subject: &d,
		Files: []registry.File{{MediaType: types.MediaType(attest.TypeBOM), Data: raw}}}); err != nil {
		t.Fatal(err)
	}
}

func TestBillOfMaterialsAndProvenance(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(map[bool]string{false: "Referrers API", true: "fallback tag"}[plain], func(t *testing.T) {
			w := newWorld(t)
			if plain {
				w.reg.WithoutReferrers()
			}
			w.baseBOM(t)
			e := engine(t, builder.Options{CacheDir: t.TempDir()})
			bare := mustBuild(t, engine(t, builder.Options{}), w.in("team/bare/nodejs18", w.request(t, "k1", "one")))
			req := w.request(t, "k1", "one")
			req.Origin = origin(strings.Repeat("a", 40))
			img := mustBuild(t, e, req)
			if img.Ref.DigestStr() != bare.Ref.DigestStr() {
				t.Error("where it comes from changed the image")
			}
			docs := beside(t, img.Ref)
			bom, err := attest.ReadBOM(docs[attest.PredicateBOM], "")
			if err != nil {
				t.Fatal(err)
			}
			var purls []string
			for _, c := range bom.Components {
				purls = append(purls, c.Layer+" "+c.PURL())
			}
			all := strings.Join(purls, "\n")
			for _, want := range []string{"base pkg:deb/debian/libc6@2.36-9?arch=amd64", "dependencies pkg:npm/generated-0@1.0.0", "base pkg:oci/nodejs18@sha256"} {
				if !strings.Contains(all, want) {
					t.Errorf("no %s in\n%s", want, all)
				}
			}
			if len(bom.Unknown) != 0 {
				t.Errorf("unknown: %v", bom.Unknown)
			}
			claim, err := attest.ReadStatement(docs[attest.Predicate])
			if err != nil || claim.Builder != req.Origin.Builder || len(claim.Materials) != 2 || claim.Subjects[0].Digest != img.Ref.DigestStr() {
				t.Errorf("%+v, %v", claim, err)
			}
			if len(img.Referrers) != 2 || img.Referrers[0].Signed || len(img.Warnings) != 0 {
				t.Errorf("%+v %v", img.Referrers, img.Warnings)
			}
			// Another commit with equal inputs asks one question.
			same := w.request(t, "k1", "one")
			same.Origin = origin(strings.Repeat("b", 40))
			if log := requests(w.reg, func() { mustBuild(t, e, same) }); len(log) != 1 {
				t.Errorf("no change: %v", log)
			}
			// A code change has the same bill of materials: five requests for
			// the image, two and one for the provenance, one for the list; and
			// the list of referrers where the registry keeps none.
			next := w.request(t, "k2", "two")
			next.Origin = origin(strings.Repeat("c", 40))
			want := map[bool]int{false: 9, true: 12}[plain]
			var changed builder.Image
			if log := requests(w.reg, func() { changed = mustBuild(t, e, next) }); len(log) != want {
				t.Errorf("code change: %d requests, want %d: %v", len(log), want, log)
			}
			if again := beside(t, changed.Ref); !bytes.Equal(again[attest.PredicateBOM], docs[attest.PredicateBOM]) {
				t.Error("another bill of materials for the same packages")
			}
		})
	}
}

func TestBillOfMaterialsIsTheSameAnywhere(t *testing.T) {
	var all [][]byte
	for range 2 {
		w := newWorld(t)
		req := w.request(t, "k1", "one")
		req.Origin = origin(strings.Repeat("a", 40))
		docs := beside(t, mustBuild(t, engine(t, builder.Options{}), req).Ref)
		all = append(all, docs[attest.PredicateBOM])
		if bom, err := attest.ReadBOM(docs[attest.PredicateBOM], ""); err != nil || len(bom.Unknown) != 1 {
			t.Errorf("a base without a list: %+v, %v", bom.Unknown, err)
		}
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Errorf("%s\n%s", all[0], all[1])
	}
}

// What a build command puts together has no lock file. Jars say themselves
// what they are; of anything else it is not known.
func TestWhatABuildCommandInstalls(t *testing.T) {
	w := newWorld(t)
	w.baseBOM(t)
	var jar bytes.Buffer
	z := zip.NewWriter(&jar)
	f, err := z.Create("META-INF/maven/com.google.code.gson/gson/pom.properties")
	if err == nil {
		_, err = f.Write([]byte("groupId=com.google.code.gson\nartifactId=gson\nversion=2.10\n"))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{"lib/gson.jar": {Data: jar.Bytes()}, "lib/other-1.jar": {Data: []byte("PK")}}
	for key, unknown := range map[string]string{"jars": "", "more": "packages that the build command installed"} {
		req := w.request(t, key, "one")
		req.Dependencies = nil
		if unknown != "" {
			files["lib/x.so"] = &fstest.MapFile{Data: []byte("x")}
		}
		req.Layers = append(req.Layers, builder.Tree{Title: "dependencies", FS: files, Prefix: "/app"})
		req.Origin = origin(strings.Repeat("a", 40))
		docs := beside(t, mustBuild(t, engine(t, builder.Options{}), req).Ref)
		delete(files, "lib/x.so")
		if list := string(docs[attest.PredicateBOM]); !strings.Contains(list, `"pkg:maven/com.google.code.gson/gson@2.10"`) || !strings.Contains(list, `"pkg:generic/other@1"`) || !strings.Contains(list, `"SHA-256"`) {
			t.Errorf("%s: %s", key, list)
		}
		bom, err := attest.ReadBOM(docs[attest.PredicateBOM], "")
		if err != nil || strings.Join(bom.Unknown, ", ") != unknown {
			t.Errorf("%s: %v, %v", key, bom.Unknown, err)
		}
	}
}

// What instructions installed stands beside what their base has; where they
// changed Debian's packages, theirs is the list.
func TestWhatInstructionsInstall(t *testing.T) {
	w := newWorld(t)
	pushBOM(t, w.base, attest.BOM{Name: "base/nodejs18", Components: []attest.Component{
		{Type: "deb", Namespace: "debian", Name: "libc6", Version: "2.36-9", Arch: "amd64"}, {Type: "deb", Namespace: "debian", Name: "openssl", Version: "3.0", Arch: "amd64"},
	}})
	req := w.request(t, "k1", "one")
	req.Dependencies, req.Origin = nil, origin(strings.Repeat("a", 40))
	req.Base = pushBaseOf(t, w.reg, "team/app/nodejs18", "made by instructions", "node18")
	req.Made = &builder.Made{From: &w.base, Debian: true, Packages: []attest.Component{
		{Type: "deb", Namespace: "debian", Name: "libc6", Version: "2.36-9", Arch: "amd64"}, {Type: "deb", Namespace: "debian", Name: "openssl", Version: "3.1", Arch: "amd64"},
		{Type: "npm", Name: "left-pad", Version: "1.3.0"},
	}}
	bom, err := attest.ReadBOM(beside(t, mustBuild(t, engine(t, builder.Options{}), req).Ref)[attest.PredicateBOM], "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range bom.Components {
		if c.Type != "oci" {
			got = append(got, c.Layer+" "+c.PURL())
		}
	}
	want := []string{"base pkg:deb/debian/libc6@2.36-9?arch=amd64", "dockerfile pkg:deb/debian/openssl@3.1?arch=amd64", "dockerfile pkg:npm/left-pad@1.3.0"}
	if !slices.Equal(got, want) || len(bom.Unknown) != 1 {
		t.Errorf("%q, unknown %q; want %q", got, bom.Unknown, want)
	}
}

func newSigner(t *testing.T) (*attest.Signer, *attest.Verifier) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := attest.ReadSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	public, err := s.Public()
	if err != nil {
		t.Fatal(err)
	}
	v, err := attest.ReadVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func TestSigned(t *testing.T) {
	w := newWorld(t)
	signer, verifier := newSigner(t)
	req := w.request(t, "k1", "one")
	req.Origin = origin(strings.Repeat("a", 40))
	img := mustBuild(t, engine(t, builder.Options{Signer: signer}), req)
	docs := beside(t, img.Ref)
	for _, predicate := range []string{attest.Predicate, attest.PredicateBOM} {
		c, err := verifier.Open(t.Context(), docs[predicate], img.Ref.DigestStr())
		if err != nil || c.Predicate != predicate {
			t.Errorf("%s: %+v, %v", predicate, c, err)
		}
	}
	if len(img.Referrers) != 2 || !img.Referrers[0].Signed {
		t.Errorf("%+v", img.Referrers)
	}
}

// TestRegistryWithoutArtefacts: the image is what the developer needs; what
// was to be signed is what the platform needs.
func TestRegistryWithoutArtefacts(t *testing.T) {
	w := newWorld(t)
	w.reg.Fault(func(rw http.ResponseWriter, r *http.Request) bool {
		refuse := r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256:")
		if refuse {
			registrytest.Refuse(rw, http.StatusBadRequest, "MANIFEST_INVALID", "unknown config media type")
		}
		return refuse
	})
	req := w.request(t, "k1", "one")
	req.Origin = origin(strings.Repeat("a", 40))
	img := mustBuild(t, engine(t, builder.Options{}), req)
	if len(img.Warnings) != 1 || !strings.Contains(img.Warnings[0], "does not take bills of materials") || len(img.Referrers) != 0 {
		t.Errorf("%v %v", img.Warnings, img.Referrers)
	}
	signer, _ := newSigner(t)
	req = w.request(t, "k2", "two")
	req.Origin = origin(strings.Repeat("a", 40))
	e := engine(t, builder.Options{Signer: signer})
	if _, err := e.Build(t.Context(), req); err == nil || !strings.Contains(err.Error(), "MANIFEST_INVALID") {
		t.Errorf("signed, and refused: %v", err)
	}
	if _, ok, err := e.Find(t.Context(), req.Repository, "k2"); ok || err != nil {
		t.Errorf("an image without its signature has its tag: %v, %v", ok, err)
	}
}

// TestNothingSecretIsPushed looks for the job's credentials in every byte that
// a build sends.
func TestNothingSecretIsPushed(t *testing.T) {
	w := newWorld(t)
	const password, npmToken = "glcbt-64_Secret!", "npm_aVerySecretToken"
	var mu sync.Mutex
	var sent bytes.Buffer
	w.reg.Auth(registrytest.Basic("ci", password))
	w.reg.Fault(func(_ http.ResponseWriter, r *http.Request) bool {
		var body bytes.Buffer
		if r.Body != nil {
			_, _ = body.ReadFrom(r.Body)
			r.Body = readCloser{bytes.NewReader(body.Bytes())}
		}
		mu.Lock()
		defer mu.Unlock()
		sent.Write(body.Bytes())
		sent.WriteString(r.URL.String())
		return false
	})
	req := w.request(t, "k1", "one")
	req.Origin = origin(strings.Repeat("a", 40))
	o := builder.Options{Keychain: fixed{"ci", password}, Authorize: func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+npmToken) }}
	img := mustBuild(t, engine(t, o), req)
	if len(img.Referrers) != 2 {
		t.Fatalf("%+v", img)
	}
	for _, secret := range []string{password, npmToken, w.npm.URL} {
		if bytes.Contains(sent.Bytes(), []byte(secret)) {
			t.Errorf("%s was pushed", secret)
		}
	}
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

type fixed struct{ user, password string }

func (f fixed) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: f.user, Password: f.password}, nil
}

func TestOCILabels(t *testing.T) {
	w := newWorld(t)
	req := w.request(t, "k1", "one")
	req.Config.Labels = map[string]string{"org.opencontainers.image.source": "https://gitlab.example/team/app"}
	pulled, err := remote.Image(mustBuild(t, engine(t, builder.Options{}), req).Ref)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := pulled.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Config.Labels; got["abi"] != "node18" || got["org.opencontainers.image.source"] == "" {
		t.Errorf("labels: %v", got)
	}
	m, err := pulled.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, l := range m.Layers {
		kinds = append(kinds, l.Annotations["io.kuroko.layer"])
	}
	if strings.Join(kinds, " ") != "base adapter dependencies code" {
		t.Errorf("layers: %v", kinds)
	}
}

// TestTransfersAreTold: each layer that was sent is told of to its end.
func TestTransfersAreTold(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	done := map[string]builder.Transfer{}
	e := engine(t, builder.Options{Progress: func(p builder.Transfer) {
		mu.Lock()
		defer mu.Unlock()
		if p.Done {
			done[p.Title] = p
		}
	}})
	img := mustBuild(t, e, w.request(t, "k1", "one"))
	for _, l := range img.Layers {
		p, ok := done[l.Title+" layer"]
		if !ok || p.Size != l.Size || p.Reused != l.Reused || !p.Reused && p.Sent != l.Size || p.Image != "nodejs18" {
			t.Errorf("%s: %+v", l.Title, p)
		}
	}
}
