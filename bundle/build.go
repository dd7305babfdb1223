package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"go.yaml.in/yaml/v3"
)

// Recipe is what [Build] makes a bundle of, beside the checkout.
type Recipe struct {
	// Version is the bundle's version, for people. Empty: what the checkout's
	// bundle.yml says, else one made of the content's sum.
	Version string
	// Runtimes fills runtimes.<name>.base and .build in bundle.yml, where the
	// checkout leaves them open because every installation has its own images.
	// Empty fields keep what bundle.yml says.
	Runtimes map[string]Images
	// Without names runtimes of the checkout's bundle.yml that this
	// installation does not have.
	Without []string
	// Runner, when set, becomes bundle.yml's runner.
	Runner *RunnerFiles
	// Generate, when set, makes further files of what the bundle has: its
	// bundle.yml, filled, and the names of its files. It may not replace one.
	Generate func(m Meta, files []string) (map[string][]byte, error)
}

// Images are a runtime's image references, repo@sha256:….
type Images struct {
	Base, Build string
	Layers      map[string]string // built-in layers by name
}

// RunnerFiles are the stage runner's binaries by "os/arch". Open is called
// once for each; the result is closed.
type RunnerFiles struct {
	Version string
	Files   map[string]func() (io.ReadCloser, error)
}

// Package is a built bundle: everything that [Publish] stores, by key.
type Package struct {
	Digest  string // sha256:<hex>
	Version string
	Files   int

	manifest []byte
	// objects are immutable; the manifest is not among them, because it is
	// stored last.
	objects map[string][]byte
}

// folders are the parts of a checkout that make the default bundle, and where
// they land in it.
var folders = []struct{ from, to string }{
	{"ci-templates", "ci-templates"},
	{"dockerfiles", "dockerfiles"},
	{"platform", "."},
	{"runtimes", "runtimes"},
}

// skip says which files of a checkout never belong into a bundle: sources and
// tests of the Go package beside the adapters, tests of adapters, explanations
// (a comma there must not rebuild everybody's images), what package managers
// and version control leave.
func skip(name string, dir bool) bool {
	if dir {
		return name == ".git" || name == "node_modules" || name == "testdata" || name == "test" || name == "__pycache__"
	}
	return name == "README.md" || name == ".gitignore" || name == ".gitkeep" || name == ".DS_Store" || strings.HasSuffix(name, ".go") ||
		strings.Contains(name, ".test.") || strings.HasSuffix(name, ".pyc")
}

// Build assembles a bundle from a checkout's folders dockerfiles, runtimes,
// platform (which lands at the bundle's root) and ci-templates. Folders that
// aren't there are left out; platform/bundle.yml must be.
//
// The same content gives the same bundle: file times, owners and umask don't
// matter, of modes only "executable" does. Symbolic links and special files
// are refused. All that is wrong in bundle.yml, clusters.yml and policy.yml is
// reported at once, with line and column, as [ContentError]s.
func Build(ctx context.Context, checkout fs.FS, r Recipe) (*Package, error) {
	tree := map[string]source{}
	for _, f := range folders {
		if err := collect(ctx, checkout, f.from, f.to, tree); err != nil {
			return nil, err
		}
	}
	z, err := compressor()
	if err != nil {
		return nil, err
	}
	defer z.Close()
	p := &Package{objects: map[string][]byte{}}
	if err := p.describe(ctx, tree, r, z); err != nil {
		return nil, err
	}
	var m Manifest
	var plain bytes.Buffer
	m.Format = 1
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s := tree[name]
		f := File{Path: name, SHA256: sum(s.data), Size: int64(len(s.data)), Exec: s.exec}
		m.Files = append(m.Files, f)
		if plain.Len()+len(s.data) > maxTotal {
			return nil, failf(ErrContent, "the files have more than %d bytes", maxTotal)
		}
		plain.Write(s.data)
		p.objects[blobKey(f.SHA256)] = z.EncodeAll(s.data, nil)
	}
	pack := z.EncodeAll(plain.Bytes(), nil)
	m.Pack = Blob{SHA256: sum(pack), Size: int64(len(pack))}
	if err := m.Validate(); err != nil {
		return nil, &failure{ErrContent, errors.New(reason(err))}
	}
	p.objects[packKey(m.Pack.SHA256)] = pack
	if p.manifest, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("bundle: manifest: %w", err)
	}
	p.Digest, p.Files = digest(sum(p.manifest)), len(m.Files)
	return p, nil
}

type source struct {
	data []byte
	exec bool
	from string // path in the checkout, for messages
}

// collect reads checkout/from into tree below to.
func collect(ctx context.Context, checkout fs.FS, from, to string, tree map[string]source) error {
	top, err := fs.ReadDir(checkout, ".")
	if err != nil {
		return fmt.Errorf("bundle: build: %w", err)
	}
	i := slices.IndexFunc(top, func(e fs.DirEntry) bool { return e.Name() == from })
	if i < 0 {
		return nil
	}
	if !top[i].IsDir() {
		return failf(ErrContent, "%s: not a folder (%s)", from, kind(top[i].Type()))
	}
	return fs.WalkDir(checkout, from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("bundle: build: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if p != from && skip(d.Name(), d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return nil
		}
		if !d.Type().IsRegular() {
			return failf(ErrContent, "%s: a bundle holds regular files only, this is a %s", p, kind(d.Type()))
		}
		in, err := d.Info()
		if err != nil {
			return fmt.Errorf("bundle: build: %w", err)
		}
		f, err := checkout.Open(p)
		if err != nil {
			return fmt.Errorf("bundle: build: %w", err)
		}
		defer f.Close()
		data, err := readAll(f, maxFile)
		if errors.Is(err, errTooLarge) {
			return failf(ErrContent, "%s: %w", p, err)
		}
		if err != nil {
			return fmt.Errorf("bundle: build: %w", err)
		}
		name := path.Join(to, strings.TrimPrefix(p, from+"/"))
		if old, ok := tree[name]; ok {
			return failf(ErrContent, "%s and %s both land at %s", old.from, p, name)
		}
		tree[name] = source{data, in.Mode()&0o111 != 0, p}
		return nil
	})
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m.IsDir():
		return "folder"
	case m.IsRegular():
		return "file"
	}
	return "special file"
}

// describe checks the bundle's own YAML files and fills bundle.yml.
func (p *Package) describe(ctx context.Context, tree map[string]source, r Recipe, z *zstd.Encoder) error {
	var errs []error
	if s, ok := tree["clusters.yml"]; ok {
		if _, err := ParseClusters(s.data); err != nil {
			errs = append(errs, err)
		}
	}
	if s, ok := tree["policy.yml"]; ok {
		if _, err := ParsePolicy(s.data); err != nil {
			errs = append(errs, err)
		}
	}
	s, ok := tree["bundle.yml"]
	if !ok {
		return errors.Join(append(errs, failf(ErrContent, "platform/bundle.yml: %w", fs.ErrNotExist))...)
	}
	var m Meta
	doc := decodeYAML("bundle.yml", s.data, &m)
	if err := doc.err(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	switch {
	case r.Version != "":
		m.Version = r.Version
	case m.Version == "":
		m.Version = "dev-" + contentSum(tree, r)[:12]
	}
	if !printable(m.Version) {
		return failf(ErrContent, "version %q has characters that are no text", m.Version)
	}
	p.Version = m.Version
	for _, name := range r.Without {
		if _, ok := m.Runtimes[name]; !ok {
			doc.badf(nil, "no runtime %q in it to leave out; it has: %s", name, strings.Join(slices.Sorted(maps.Keys(m.Runtimes)), ", "))
		}
		delete(m.Runtimes, name)
	}
	for name, images := range r.Runtimes {
		rt, ok := m.Runtimes[name]
		if !ok {
			doc.badf(nil, "no runtime %q in it; it has: %s", name, strings.Join(slices.Sorted(maps.Keys(m.Runtimes)), ", "))
			continue
		}
		if images.Base != "" {
			rt.Base = images.Base
		}
		if images.Build != "" {
			rt.Build = images.Build
		}
		for layer, ref := range images.Layers {
			if rt.Layers == nil {
				rt.Layers = map[string]string{}
			}
			rt.Layers[layer] = ref
		}
		m.Runtimes[name] = rt
	}
	if r.Runner != nil {
		if err := p.runner(ctx, r.Runner); err != nil {
			return err
		}
		m.Runner = &Runner{Version: r.Runner.Version, Blobs: map[string]Blob{}}
		for platform, open := range r.Runner.Files {
			b, err := p.addRunner(open, z)
			if err != nil {
				return fmt.Errorf("bundle: runner for %s: %w", platform, err)
			}
			m.Runner.Blobs[platform] = b
		}
	}
	m.check(doc, func(dir string) bool {
		for name := range tree {
			if strings.HasPrefix(name, dir+"/") {
				return true
			}
		}
		return false
	})
	if err := doc.err(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	out, err := yaml.Marshal(m)
	if err != nil {
		return fmt.Errorf("bundle: bundle.yml: %w", err)
	}
	tree["bundle.yml"] = source{data: out, from: s.from}
	return generate(tree, m, r)
}

// generate adds the recipe's own files.
func generate(tree map[string]source, m Meta, r Recipe) error {
	if r.Generate == nil {
		return nil
	}
	files, err := r.Generate(m, slices.Sorted(maps.Keys(tree)))
	if err != nil {
		return fmt.Errorf("bundle: generate files: %w", err)
	}
	for name, data := range files {
		if old, ok := tree[name]; ok {
			return failf(ErrContent, "%s lands at %s, which is made when a bundle is built", old.from, name)
		}
		tree[name] = source{data: data, from: name}
	}
	return nil
}

// contentSum names a checkout that has no version.
func contentSum(tree map[string]source, r Recipe) string {
	h := newHash(io.Discard)
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		fmt.Fprintf(h, "%q %s %t\n", name, sum(tree[name].data), tree[name].exec)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Runtimes)) {
		fmt.Fprintf(h, "%q %q\n", name, r.Runtimes[name]) // maps print sorted
	}
	for _, name := range slices.Sorted(slices.Values(r.Without)) {
		fmt.Fprintf(h, "without %q\n", name)
	}
	return h.sum()
}

var platformName = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+$`)

func (p *Package) runner(ctx context.Context, r *RunnerFiles) error {
	if r.Version == "" || len(r.Files) == 0 {
		return failf(ErrContent, "a runner needs a version and at least one file")
	}
	for platform := range r.Files {
		if !platformName.MatchString(platform) {
			return failf(ErrContent, "runner: %q is not os/arch, such as linux/amd64", platform)
		}
	}
	return ctx.Err()
}

// addRunner stores a binary in the package.
func (p *Package) addRunner(open func() (io.ReadCloser, error), z *zstd.Encoder) (Blob, error) {
	f, err := open()
	if err != nil {
		return Blob{}, err
	}
	defer f.Close()
	plain, err := readAll(f, maxRunner)
	if err != nil {
		return Blob{}, err
	}
	if len(plain) == 0 {
		return Blob{}, errors.New("the file is empty")
	}
	b := Blob{SHA256: sum(plain), Size: int64(len(plain))}
	p.objects[binKey(b.SHA256)] = z.EncodeAll(plain, nil)
	return b, nil
}

// byDigest is an image reference that can only ever mean one image.
var byDigest = regexp.MustCompile(`^[a-z0-9]([a-z0-9._:/-]*[a-z0-9])?@sha256:[0-9a-f]{64}$`)

var layerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// languages are the adapters there can be.
var languages = []string{"java", "node", "python"}

// check reports what is wrong with a complete bundle.yml. has says whether the
// bundle has a folder.
func (m *Meta) check(doc *yamlDoc, has func(dir string) bool) {
	if m.Version == "" {
		doc.badf([]string{"version"}, "missing")
	}
	if _, ok := numbers(m.MinRunner); m.MinRunner != "" && !ok {
		doc.badf([]string{"minRunner"}, "%q is not a version, such as 1.2.3", m.MinRunner)
	}
	if m.Docs != "" && !strings.HasPrefix(m.Docs, "https://") && !strings.HasPrefix(m.Docs, "http://") {
		doc.badf([]string{"docs"}, "%q is not a web address", m.Docs)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Runtimes)) {
		rt := m.Runtimes[name]
		at := func(key string) []string { return []string{"runtimes", name, key} }
		if !slices.Contains(languages, rt.Language) {
			doc.badf(at("language"), "%q is not one of: %s", rt.Language, strings.Join(languages, ", "))
		}
		switch {
		case rt.Base == "":
			doc.badf(at("base"), "missing; give one with --runtime %[1]s.base=REPOSITORY@sha256:…, or leave the runtime out with --without %[1]s", name)
		case !byDigest.MatchString(rt.Base):
			doc.badf(at("base"), "%q is not an image by digest, repository@sha256:…", rt.Base)
		}
		if rt.Build != "" && !byDigest.MatchString(rt.Build) {
			doc.badf(at("build"), "%q is not an image by digest, repository@sha256:…", rt.Build)
		}
		if rt.ABI == "" {
			doc.badf(at("abi"), "missing")
		}
		if rt.Adapter != "" && (badPath(rt.Adapter) != "" || !has(rt.Adapter)) {
			doc.badf(at("adapter"), "%q is not a folder of the bundle", rt.Adapter)
		}
		for _, layer := range slices.Sorted(maps.Keys(rt.Layers)) {
			at := []string{"runtimes", name, "layers", layer}
			if !layerName.MatchString(layer) {
				doc.badf(at, "%q is not a layer's name", layer)
			}
			if !byDigest.MatchString(rt.Layers[layer]) {
				doc.badf(at, "%q is not an image by digest, repository@sha256:…", rt.Layers[layer])
			}
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(m.Mirrors)) {
		u, err := url.Parse(m.Mirrors[kind])
		switch {
		case kind != "npm" && kind != "pip" && kind != "maven":
			doc.badf([]string{"mirrors", kind}, "%q is not one of: npm, pip, maven", kind)
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			doc.badf([]string{"mirrors", kind}, "not a web address")
		case u.User != nil:
			doc.badf([]string{"mirrors", kind}, "holds credentials: a bundle is public; jobs take them from the netrc file that NETRC names")
		}
	}
	for key, address := range map[string]string{"http": m.Proxy.HTTP, "https": m.Proxy.HTTPS} {
		u, err := url.Parse(address)
		switch {
		case address == "":
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			doc.badf([]string{"proxy", key}, "not a web address")
		case u.User != nil:
			doc.badf([]string{"proxy", key}, "holds credentials: a bundle is public; a proxy that asks for them is set up on the machine, with HTTP_PROXY and HTTPS_PROXY")
		}
	}
	for i, host := range m.Proxy.None {
		if host == "" || strings.ContainsAny(host, ", \t\n") {
			doc.badf([]string{"proxy", "none", strconv.Itoa(i)}, "%q is not one host", host)
		}
	}
	if len(m.Proxy.None) > 0 && m.Proxy.HTTP == "" && m.Proxy.HTTPS == "" {
		doc.badf([]string{"proxy", "none"}, "there is no proxy to go around")
	}
	if m.Runner != nil {
		if m.Runner.Version == "" || len(m.Runner.Blobs) == 0 {
			doc.badf([]string{"runner"}, "needs a version and at least one blob")
		}
		for platform, b := range m.Runner.Blobs {
			if !platformName.MatchString(platform) || !okSum(b.SHA256) || b.Size <= 0 || b.Size > maxRunner {
				doc.badf([]string{"runner", "blobs", platform}, "not a runner for os/arch with sha256 and size")
			}
		}
	}
}

// ParseMeta reads bundle.yml strictly, as publishers do.
func ParseMeta(data []byte) (Meta, error) {
	var m Meta
	doc := decodeYAML("bundle.yml", data, &m)
	if len(doc.problems) == 0 {
		m.check(doc, func(string) bool { return true })
	}
	return m, doc.err()
}

// readMeta reads bundle.yml as readers do: a runner older than the bundle
// ignores what it doesn't know, so that it can at least start the runner that
// the bundle names. Of a file that it can't read at all, the frozen part is
// enough when that names a runner.
func readMeta(data []byte) (Meta, error) {
	var m Meta
	err := yaml.Unmarshal(data, &m)
	if err == nil && m.Version != "" {
		return m, nil
	}
	var frozen struct {
		Version   string  `yaml:"version"`
		MinRunner string  `yaml:"minRunner"`
		Runner    *Runner `yaml:"runner"`
	}
	if e := yaml.Unmarshal(data, &frozen); e == nil && frozen.Version != "" && frozen.Runner != nil {
		return Meta{Version: frozen.Version, MinRunner: frozen.MinRunner, Runner: frozen.Runner}, nil
	}
	if err == nil {
		err = errors.New("no version in it")
	}
	return Meta{}, failf(ErrContent, "bundle.yml: %s", yamlReason(err))
}
