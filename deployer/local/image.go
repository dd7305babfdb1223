package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kuroko-faas/kuroko/deployer"
)

// images is the cache of unpacked images:
//
//	layers/<diff id>/fs + needs.json   a layer alone
//	whole/<name>/fs                    an image's layers on top of each other
//	images/<digest>.json               what an image is made of
//
// A folder appears under its name only when it is complete.
type images struct {
	dir      string
	shared   string // in place of layers; other servers use it too
	keychain authn.Keychain
	rt       http.RoundTripper
	limits   limits
	owners   bool

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by folder: one pull at a time
}

// imageRecord is what stays known about an image, so that a unit starts again
// without its registry.
type imageRecord struct {
	Layers []string `json:"layers"` // diff ids, bottom first
	Config struct {
		Entrypoint []string `json:"entrypoint"`
		Cmd        []string `json:"cmd"`
		Env        []string `json:"env"`
		Dir        string   `json:"dir"`
		User       string   `json:"user"`
	} `json:"config"`
	// Below: some layer can't be unpacked alone.
	Below bool `json:"below"`
}

// rootfs is an image ready to run.
type rootfs struct {
	imageRecord
	// lower are the layers' folders, top first, to be overlaid; or
	lower []string
	// whole is one folder with everything in it.
	whole string
}

// overlayLayers is how many layers an overlay may have; mount options are
// limited to one page.
const overlayLayers = 16

func (c *images) lock(key string) func() {
	c.mu.Lock()
	if c.locks == nil {
		c.locks = map[string]*sync.Mutex{}
	}
	l := c.locks[key]
	if l == nil {
		l = new(sync.Mutex)
		c.locks[key] = l
	}
	c.mu.Unlock()
	l.Lock()
	return l.Unlock
}

func (c *images) options(ctx context.Context) []remote.Option {
	opts := []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(c.keychain),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}),
	}
	if c.rt != nil {
		opts = append(opts, remote.WithTransport(c.rt))
	}
	return opts
}

// check asks whether the image could be pulled, without pulling it.
func (c *images) check(ctx context.Context, ref name.Digest) *deployer.Failure {
	if _, err := c.read(ref); err == nil {
		return nil
	}
	if _, err := remote.Head(ref, c.options(ctx)...); err != nil {
		return pullFailure(ref, err)
	}
	return nil
}

func (c *images) recordFile(ref name.Digest) string {
	return filepath.Join(c.dir, "images", hexOf(ref.DigestStr())+".json")
}

func hexOf(digest string) string { return digest[strings.IndexByte(digest, ':')+1:] }

// read returns what is known of an image, when its layers are here too.
func (c *images) read(ref name.Digest) (imageRecord, error) {
	var rec imageRecord
	b, err := os.ReadFile(c.recordFile(ref))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, err
	}
	if rec.Below {
		return rec, nil
	}
	for _, d := range rec.Layers {
		if _, err := os.Stat(c.layerDir(d)); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

func (c *images) layerDir(diffID string) string {
	if c.shared != "" {
		return filepath.Join(c.shared, hexOf(diffID))
	}
	return filepath.Join(c.dir, "layers", hexOf(diffID))
}

// get pulls what is missing of the image and unpacks it: as layers to overlay,
// or, when whole names a folder, on top of each other into that folder.
// Errors are [*deployer.Failure], or ctx's.
func (c *images) get(ctx context.Context, ref name.Digest, whole string, progress func(string)) (rootfs, error) {
	fs, err := c.pull(ctx, ref, whole, progress)
	if err == nil || ctx.Err() != nil {
		return fs, err
	}
	return rootfs{}, pullFailure(ref, err)
}

func (c *images) pull(ctx context.Context, ref name.Digest, whole string, progress func(string)) (rootfs, error) {
	rec, err := c.read(ref)
	var img v1.Image
	if err != nil {
		progress("pulling image " + ref.String())
		if img, rec, err = c.manifest(ctx, ref); err != nil {
			return rootfs{}, err
		}
	}
	if whole == "" && !rec.Below && len(rec.Layers) <= overlayLayers {
		fs := rootfs{imageRecord: rec}
		for i, d := range rec.Layers {
			if img != nil {
				progress(fmt.Sprintf("pulling image, %d of %d layers", i, len(rec.Layers)))
				need, err := c.layer(ctx, img, d)
				if err != nil {
					return rootfs{}, err
				}
				rec.Below = rec.Below || i > 0 && (need.Below || !alike(need.Folders, fs.lower))
			}
			fs.lower = append([]string{filepath.Join(c.layerDir(d), "fs")}, fs.lower...)
		}
		if img != nil {
			if err := writeJSON(c.recordFile(ref), rec); err != nil {
				return rootfs{}, err
			}
		}
		if !rec.Below {
			return fs, nil
		}
	}
	if whole == "" {
		whole = hexOf(ref.DigestStr())
	}
	return c.whole(ctx, ref, img, rec, whole, progress)
}

// manifest reads what the image is made of from its registry.
func (c *images) manifest(ctx context.Context, ref name.Digest) (v1.Image, imageRecord, error) {
	var rec imageRecord
	img, err := remote.Image(ref, c.options(ctx)...)
	if err != nil {
		return nil, rec, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, rec, err
	}
	if cfg.Architecture != "" && cfg.Architecture != runtime.GOARCH || cfg.OS != "" && cfg.OS != "linux" {
		return nil, rec, &deployer.Failure{
			Code:  deployer.ImageUnusable,
			Cause: fmt.Sprintf("the image is for %s/%s, this machine is linux/%s", cfg.OS, cfg.Architecture, runtime.GOARCH),
			Next:  "build it for this machine's architecture",
		}
	}
	for _, d := range cfg.RootFS.DiffIDs {
		if d.Algorithm != "sha256" || len(d.Hex) != 64 {
			return nil, rec, fmt.Errorf("layer id %s is not a sha256", d)
		}
		rec.Layers = append(rec.Layers, d.String())
	}
	rec.Config.Entrypoint, rec.Config.Cmd, rec.Config.Env = cfg.Config.Entrypoint, cfg.Config.Cmd, cfg.Config.Env
	rec.Config.Dir, rec.Config.User = cfg.Config.WorkingDir, cfg.Config.User
	return img, rec, nil
}

// alike reports whether folders that a layer does not describe would be the
// same without it: not there, or as we made them.
func alike(folders, lower []string) bool {
	for _, f := range folders {
		for _, l := range lower {
			st, err := os.Lstat(filepath.Join(l, f))
			if err != nil {
				continue
			}
			sys, ok := st.Sys().(*syscall.Stat_t)
			if st.Mode() != os.ModeDir|0o755 || !ok || int(sys.Uid) != os.Geteuid() || int(sys.Gid) != os.Getegid() {
				return false
			}
			break
		}
	}
	return true
}

// layer unpacks one layer alone, once.
func (c *images) layer(ctx context.Context, img v1.Image, diffID string) (need layerNeeds, err error) {
	dir := c.layerDir(diffID)
	defer c.lock(dir)()
	if b, err := os.ReadFile(filepath.Join(dir, "needs.json")); err == nil && json.Unmarshal(b, &need) == nil {
		return need, nil
	}
	err = c.unpack(dir, func(root *os.Root) error {
		x := &extractor{root: root, owners: c.owners, left: c.limits}
		if err := c.stream(ctx, img, diffID, x.layer); err != nil {
			return err
		}
		need = x.need
		return nil
	}, func(tmp string) error { return writeJSON(filepath.Join(tmp, "needs.json"), need) })
	return need, err
}

// whole unpacks all layers on top of each other, once per folder.
func (c *images) whole(ctx context.Context, ref name.Digest, img v1.Image, rec imageRecord, folder string, progress func(string)) (rootfs, error) {
	dir := filepath.Join(c.dir, "whole", folder)
	defer c.lock(dir)()
	fs := rootfs{imageRecord: rec, whole: filepath.Join(dir, "fs")}
	if _, err := os.Stat(c.recordFile(ref)); err == nil {
		if _, err := os.Stat(fs.whole); err == nil {
			return fs, nil
		}
	}
	if img == nil {
		var err error
		if img, fs.imageRecord, err = c.manifest(ctx, ref); err != nil {
			return rootfs{}, err
		}
	}
	err := c.unpack(dir, func(root *os.Root) error {
		x := &extractor{root: root, onto: true, owners: c.owners, left: c.limits}
		for i, d := range rec.Layers {
			progress(fmt.Sprintf("pulling image, %d of %d layers", i, len(rec.Layers)))
			if err := c.stream(ctx, img, d, x.layer); err != nil {
				return err
			}
		}
		return nil
	}, func(string) error { return nil })
	if err != nil {
		return rootfs{}, err
	}
	rec.Below = true // so that its layers are not looked for
	return fs, writeJSON(c.recordFile(ref), rec)
}

// unpack fills a folder beside its final name and renames it when complete.
func (c *images) unpack(dir string, fill func(*os.Root) error, finish func(tmp string) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), tmpPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTree(tmp))
		}
	}()
	inside := filepath.Join(tmp, "fs")
	if err := os.Mkdir(inside, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		return err
	}
	err = fill(root)
	if err = errors.Join(err, root.Close()); err != nil {
		return err
	}
	if err := finish(tmp); err != nil {
		return err
	}
	if filepath.Dir(dir) != c.shared {
		if err := removeTree(dir); err != nil { // an incomplete one of an older version
			return err
		}
	}
	err = os.Rename(tmp, dir)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) {
		return removeTree(tmp) // another server was first with the same
	}
	return err
}

// tmpPrefix marks what a start may remove.
const tmpPrefix = ".tmp-"

// stream hands the uncompressed layer to f and verifies it by its id.
func (c *images) stream(ctx context.Context, img v1.Image, diffID string, f func(io.Reader) error) error {
	h, err := v1.NewHash(diffID)
	if err != nil {
		return err
	}
	l, err := img.LayerByDiffID(h)
	if err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	r, err := l.Uncompressed()
	if err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	defer r.Close()
	sum := sha256.New()
	if err := f(io.TeeReader(ctxReader{ctx, r}, sum)); err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != h.Hex {
		return fmt.Errorf("layer %s: the registry sent content %s", diffID, got)
	}
	return nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// pullFailure names the cause of a failed pull.
func pullFailure(ref name.Digest, err error) *deployer.Failure {
	var f *deployer.Failure
	if errors.As(err, &f) {
		return f
	}
	f = &deployer.Failure{Cause: fmt.Sprintf("image %s: %v", ref, err)}
	var status *transport.Error
	var hostile *hostileError
	switch {
	case errors.As(err, &status) && status.StatusCode == http.StatusNotFound:
		f.Code, f.Cause = deployer.ImageMissing, fmt.Sprintf("image %s: %s has no such image", ref, ref.RegistryStr())
		f.Next = "build it again; if it was there before, the registry's retention may have removed it"
	case errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		f.Code, f.Next = deployer.ImageUnauthorized, "give the target credentials that may pull from "+ref.RegistryStr()
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Code, f.Next = deployer.Unable, "free disk space on the target"
	case errors.As(err, &hostile):
		f.Code, f.Next = deployer.ImageUnusable, "do not run it; find out who built it"
	case errors.As(err, &status):
		f.Code, f.Next = deployer.ImageUnreachable, "try again later"
	case isNetwork(err):
		f.Code, f.Next = deployer.ImageUnreachable, "check that the target reaches "+ref.RegistryStr()
	default:
		f.Code, f.Next = deployer.ImageUnusable, "build and push it again"
	}
	return f
}

func isNetwork(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNREFUSED)
}

// sweep removes what interrupted pulls left and what no unit's image needs.
func (c *images) sweep(inUse map[string]name.Digest) error {
	var errs []error
	keep := map[string]bool{}
	for _, ref := range inUse {
		rec, err := c.read(ref)
		if err != nil {
			continue
		}
		keep[filepath.Base(c.recordFile(ref))] = true
		keep[hexOf(ref.DigestStr())] = true
		for _, d := range rec.Layers {
			keep[hexOf(d)] = true
		}
	}
	for _, sub := range []string{"layers", "whole", "images"} { // never those that are shared
		entries, err := os.ReadDir(filepath.Join(c.dir, sub))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		errs = append(errs, err)
		for _, e := range entries {
			id, _, _ := strings.Cut(e.Name(), ".") // a whole root may be one revision's
			if !keep[e.Name()] && !keep[id] {
				errs = append(errs, removeTree(filepath.Join(c.dir, sub, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a folder whose own folders may be read-only.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
