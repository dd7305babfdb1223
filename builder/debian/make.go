package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Builder makes images on this machine. Its methods are safe for concurrent
// use, also by several processes: one builds at a time in one Cache.
type Builder struct {
	// Cache holds package lists, archives, layers and the images made. It must
	// be on a disk with room for them: some 600 MB for the default recipes.
	Cache string
	// Env is the environment of apt, dpkg-deb and npm: usually the caller's,
	// so that proxies and configuration count.
	Env []string
	// Log receives one line for people per step; nil is silence.
	Log func(line string)
	// ListsAge is how old package lists may be before they are fetched again;
	// 0 means an hour, less than 0 always fetches.
	ListsAge time.Duration
	// Limits bound the programs that are run.
	Limits Limits
	// Retries is how often apt tries again what a source did not give it; 0
	// means 3 times, less than 0 never.
	Retries int
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Limits are the longest times that each kind of child process may take. The
// zero value of a field is its default.
type Limits struct {
	Update   time.Duration // 5 minutes
	Resolve  time.Duration // 2 minutes
	Download time.Duration // 20 minutes
	Unpack   time.Duration // 5 minutes, for one package
	NPM      time.Duration // 5 minutes
}

// Options are what a build needs besides its recipe.
type Options struct {
	// Files are the folders that the recipe's files are taken from; the first
	// that has one gives it.
	Files []string
	// Out receives the image at Out/<name>; "" means the cache.
	Out string
}

// Image describes an image that was made.
type Image struct {
	Name   string `json:"name"`
	Kind   Kind   `json:"kind"`
	Digest string `json:"digest"`
	// Size is the number of bytes a pull transfers, Unpacked what the layers
	// take on a disk.
	Size     int64  `json:"size"`
	Unpacked int64  `json:"unpacked"`
	ABI      string `json:"abi"`
	Arch     string `json:"arch"` // as in image references: amd64, arm64
	// Path is the folder of the OCI layout.
	Path string `json:"path"`
	// Reused means that the same image was there already.
	Reused bool    `json:"reused"`
	Layers []Layer `json:"layers"`
	// Missing are the optional files that were not there.
	Missing []string `json:"missing,omitempty"`
	// Packages are what apt resolved; NPM is npm's version, if it is inside.
	Packages []Package `json:"packages"`
	NPM      string    `json:"npm,omitempty"`
}

// Layer is one layer of an [Image].
type Layer struct {
	Title  string `json:"title"` // packages, npm, files
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Reused bool   `json:"reused"`
}

// Build makes r's image, or finds that it is there already. Equal recipes and
// equal packages give equal digests, on any machine of one architecture.
//
// Errors: [ErrNoApt], [*PackageError], [*ExpectError], [ErrUnsafe],
// [ErrConflict], [ErrRecipe], [ErrUntrusted], [ErrNoNPM]; a [*builder.Unavailable] when a
// package source did not answer; syscall.ENOSPC; ctx's cause.
func (b *Builder) Build(ctx context.Context, r Recipe, o Options) (Image, error) {
	if err := r.validate(); err != nil {
		return Image{}, fmt.Errorf("debian: recipe %s: %w", r.Name, err)
	}
	unlock, err := b.lock(ctx, syscall.LOCK_EX)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	img, err := b.build(ctx, r, o)
	if err != nil {
		return Image{}, fmt.Errorf("debian: image %s: %w", r.Name, err)
	}
	b.prune()
	return img, nil
}

func (b *Builder) build(ctx context.Context, r Recipe, o Options) (Image, error) {
	files, missing, err := collect(o.Files, r.Files)
	if err != nil {
		return Image{}, err // before the slow part
	}
	a, err := b.newApt(ctx)
	if err != nil {
		return Image{}, err
	}
	pkgs, err := b.plan(ctx, a, r)
	if err != nil {
		return Image{}, err
	}
	abi, err := r.abi(pkgs, a.arch)
	if err != nil {
		return Image{}, err
	}
	arch, ok := goArch[a.arch]
	if !ok {
		return Image{}, fmt.Errorf("debian: no image architecture is known for Debian's %s", a.arch)
	}
	img := Image{Name: r.Name, Kind: r.Kind, ABI: abi, Arch: arch, Missing: missing, Packages: pkgs}

	var layers []*storedLayer
	add := func(title, key string, make func(*layer.Writer) error) error {
		l, reused, err := b.stored(ctx, key, make)
		if err != nil {
			return err
		}
		layers = append(layers, l)
		img.Layers = append(img.Layers, Layer{Title: title, Digest: l.info.Digest.String(), Size: l.info.Size, Reused: reused})
		img.Size += l.info.Size
		img.Unpacked += l.info.Raw
		return nil
	}
	if err := add("packages", r.packagesKey(a.arch, pkgs), func(w *layer.Writer) error { return b.writePackages(ctx, a, r, pkgs, w) }); err != nil {
		return Image{}, err
	}
	if r.NPM != nil {
		img.NPM = r.NPM.Version
		if err := add("npm", layerKey("npm", r.NPM), func(w *layer.Writer) error { return b.writeNPM(ctx, *r.NPM, w) }); err != nil {
			return Image{}, err
		}
	}
	if len(files) > 0 {
		sums, err := files.sums(ctx)
		if err != nil {
			return Image{}, err
		}
		if err := add("files", layerKey("files", sums), func(w *layer.Writer) error { return files.write(ctx, w) }); err != nil {
			return Image{}, err
		}
	}
	if o.Out == "" {
		o.Out = b.images()
	}
	return b.writeLayout(r, img, layers, o.Out)
}

// plan finds the packages and makes sure that they can be read: fetched, or
// not needed because their layer is there. A mirror keeps only the newest
// archive of a security update, so lists that are an hour old may name one
// that is gone; then one look at newer lists decides again.
func (b *Builder) plan(ctx context.Context, a *apt, r Recipe) ([]Package, error) {
	for {
		pkgs, err := b.resolve(ctx, a, r)
		if err != nil {
			return nil, err
		}
		if err := r.expected(pkgs); err != nil {
			return nil, err
		}
		if _, err := os.Stat(b.layerDir(r.packagesKey(a.arch, pkgs))); err == nil {
			return pkgs, nil
		}
		err = b.fetch(ctx, a, r, pkgs)
		var away *builder.Unavailable
		if err == nil || a.fresh || !errors.As(err, &away) {
			return pkgs, err
		}
		if err := a.update(ctx); err != nil {
			return nil, err
		}
	}
}

// packagesKey names the layer of the packages.
func (r Recipe) packagesKey(arch string, pkgs []Package) string {
	return layerKey("packages", arch, pkgs, r.Without, r.Drop, r.Links, r.Expect, r.Absent)
}

// resolve finds the packages, with fresh enough lists. Lists that are too old
// to know a package are fetched again once.
func (b *Builder) resolve(ctx context.Context, a *apt, r Recipe) ([]Package, error) {
	age := b.ListsAge
	if age == 0 {
		age = time.Hour
	}
	if d := b.now().Sub(a.updated()); !a.fresh && (d < 0 || d > age) {
		b.log("%s: fetch the package lists", r.Name)
		if err := a.update(ctx); err != nil {
			return nil, err
		}
	}
	pkgs, err := a.resolve(ctx, r.Packages, r.Without)
	var missing *PackageError
	if errors.As(err, &missing) && !a.fresh {
		if err := a.update(ctx); err != nil {
			return nil, err
		}
		pkgs, err = a.resolve(ctx, r.Packages, r.Without)
	}
	if err == nil && len(a.trouble) > 0 {
		b.log("warning: the package lists may be old: %s", strings.Join(a.trouble, "; "))
	}
	return pkgs, err
}

// writePackages merges the packages into one layer.
func (b *Builder) writePackages(ctx context.Context, a *apt, r Recipe, pkgs []Package, w *layer.Writer) error {
	t, err := b.merge(ctx, a, r, pkgs)
	if err != nil {
		return err
	}
	defer t.close()
	b.log("%s: write the layer: %d files, %d MB", r.Name, len(t.nodes), t.end>>20)
	return t.write(ctx, w)
}

// merge is the tree of the packages. The caller closes it.
func (b *Builder) merge(ctx context.Context, a *apt, r Recipe, pkgs []Package) (_ *tree, err error) {
	if err := b.fetch(ctx, a, r, pkgs); err != nil {
		return nil, err
	}
	b.log("%s: merge %d packages", r.Name, len(pkgs))
	t, err := newTree(b.tmp(), dropper(r.Drop))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	controls := make([]control, len(pkgs))
	for i, p := range pkgs {
		c, err := b.readControl(ctx, p.path)
		if err == nil && (c.name != p.Name || c.version != p.Version || c.arch != p.Arch) {
			err = fmt.Errorf("%w: the archive says it is %s %s (%s)", ErrUnsafe, c.name, c.version, c.arch)
		}
		if err == nil {
			err = b.mergeDeb(ctx, t, source{name: p.Name, replaces: c.replaces}, p.path)
		}
		if err != nil {
			return nil, fmt.Errorf("package %s %s: %w", p.Name, p.Version, err)
		}
		controls[i] = c
	}
	for _, c := range controls {
		if err := t.installed(c); err != nil {
			return nil, err
		}
	}
	if err := t.finish(r, a.arch); err != nil {
		return nil, err
	}
	if err := r.check(t); err != nil {
		return nil, err
	}
	return t, nil
}

// fetch downloads what is missing.
func (b *Builder) fetch(ctx context.Context, a *apt, r Recipe, pkgs []Package) error {
	bad, err := a.verify(ctx, pkgs)
	if err != nil {
		return err
	}
	if len(bad) == 0 {
		return nil
	}
	b.log("%s: fetch %d of %d packages", r.Name, len(bad), len(pkgs))
	return a.download(ctx, r.Packages, r.Without, pkgs)
}

// expected checks that the resolved packages are what the image's name says.
func (r Recipe) expected(pkgs []Package) error {
	e := &ExpectError{Image: r.Name, Want: r.Expect.Package + " " + r.Expect.Major, Got: "no " + r.Expect.Package}
	for _, p := range pkgs {
		if p.Name != r.Expect.Package {
			continue
		}
		if r.Expect.Major == "" || hasMajor(upstream(p.Version), r.Expect.Major) {
			return nil
		}
		e.Got = p.Name + " " + p.Version
	}
	return e
}

// upstream strips the epoch: 2:1.3-4 is 1.3-4.
func upstream(version string) string {
	if _, rest, ok := strings.Cut(version, ":"); ok {
		return rest
	}
	return version
}

func hasMajor(version, major string) bool {
	rest, ok := strings.CutPrefix(version, major)
	return ok && (rest == "" || !(rest[0] >= '0' && rest[0] <= '9'))
}

// abi fills the recipe's pattern in.
func (r Recipe) abi(pkgs []Package, arch string) (string, error) {
	var bad error
	abi := abiRE.ReplaceAllStringFunc(r.ABI, func(m string) string {
		pkg, ok := strings.CutPrefix(strings.Trim(m, "{}"), "version:")
		if !ok {
			return arch
		}
		for _, p := range pkgs {
			if p.Name == pkg {
				return majorMinor(upstream(p.Version))
			}
		}
		bad = &ExpectError{Image: r.Name, Want: pkg + ", which its abi names", Got: "no " + pkg}
		return ""
	})
	return abi, bad
}

// majorMinor is the beginning of a version up to its second part: 2.36-9 is
// 2.36.
func majorMinor(version string) string {
	parts := strings.FieldsFunc(version, func(c rune) bool { return c < '0' || c > '9' })
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// check looks at the tree for what the recipe promises.
func (r Recipe) check(t *tree) error {
	program := t.resolve(r.Expect.Program)
	if r.Expect.Program == "" {
		program = nil // a layer of data
	} else if program == nil || !program.mode.IsRegular() || program.inode.mode&0o111 == 0 {
		return &ExpectError{Image: r.Name, Want: "the program /" + r.Expect.Program, Got: "none"}
	}
	for _, p := range r.Absent {
		if t.resolve(p) != nil {
			return &ExpectError{Image: r.Name, Want: "no /" + p, Got: "/" + p}
		}
	}
	return nil
}

// goArch maps Debian's names of architectures to those of images.
var goArch = map[string]string{
	"amd64": "amd64", "arm64": "arm64", "armhf": "arm", "i386": "386", "ppc64el": "ppc64le",
	"s390x": "s390x", "riscv64": "riscv64", "loong64": "loong64", "mips64el": "mips64le",
}

// layerKey names a layer by everything that decides its bytes.
func layerKey(kind string, parts ...any) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, p := range append([]any{kind, generation, layer.Gzip.ID()}, parts...) {
		if err := enc.Encode(p); err != nil {
			panic(err) // our own plain types only
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (b *Builder) log(format string, args ...any) {
	if b.Log != nil {
		b.Log(fmt.Sprintf(format, args...))
	}
}

func (b *Builder) now() time.Time {
	if b.Now != nil {
		return b.Now()
	}
	return time.Now()
}

func (b *Builder) retries() int {
	if b.Retries == 0 {
		return 3
	}
	return max(b.Retries, 0)
}

func (b *Builder) tmp() string                { return filepath.Join(b.Cache, "tmp") }
func (b *Builder) layerDir(key string) string { return filepath.Join(b.Cache, "layers", key) }
func (b *Builder) images() string             { return filepath.Join(b.Cache, "images") }

// env is the programs' environment: ours, in a language we can read.
func (b *Builder) env() []string {
	return append(append([]string{}, b.Env...), "LC_ALL=C", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive")
}

func (b *Builder) limits() Limits {
	l := b.Limits
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{{&l.Update, 5 * time.Minute}, {&l.Resolve, 2 * time.Minute}, {&l.Download, 20 * time.Minute}, {&l.Unpack, 5 * time.Minute}, {&l.NPM, 5 * time.Minute}} {
		if *d.at == 0 {
			*d.at = d.def
		}
	}
	return l
}
