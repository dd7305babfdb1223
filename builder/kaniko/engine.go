// Package kaniko builds images from Dockerfiles without a daemon.
//
// The engine checks the Dockerfile, pulls and unpacks the base, and pushes
// the result: all that needs credentials happens in the calling process. The
// instructions are carried out by kaniko, in a program of its own (kaniko
// unpacks over / without asking, keeps everything in globals, and costs every
// program that links it its start-up time), inside a sandbox whose root is the
// unpacked base under an overlay. A RUN sees no credentials, no file of the
// job and no environment of the job.
//
// Each stage runs in a sandbox of its own, over what its last known
// instruction made: the layers of earlier builds are found by a key of our own
// over everything that went into them, names of files included.
//
// Equal input gives an equal image as far as the commands allow: times are set
// to 0, entries sorted. What kaniko would do quietly in another way than
// Docker is done right or refused, with the line; see [Parse].
package kaniko

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// EngineName is how this engine is called in plans and reports.
const EngineName = "kaniko"

// version is part of every key: another kaniko, or another way to finish its
// layers, may give another image for the same input.
const version = "kaniko-1.24.0/4"

// Options are an engine's settings.
type Options struct {
	// Executor is the path of the kaniko-executor program, statically linked:
	// there is no loader in the sandbox.
	Executor string
	// Keychain finds credentials for the registries; nil is anonymous. They
	// never enter the sandbox.
	Keychain authn.Keychain
	// Transport reaches the registries; nil means ggcr's default.
	Transport http.RoundTripper
	// Insecure registries, "host:port", are reached over plain HTTP; loopback
	// addresses always are.
	Insecure []string
	// CacheDir keeps unpacked base images and what instructions made, by
	// content; it must not lie on a memory file system. Whoever can write to it
	// can change what later builds contain. "" uses a temporary folder for each
	// build.
	CacheDir string
	// CacheBytes is about how much stays in CacheDir: what was not used for
	// longest goes first. 0 means 10 GiB.
	CacheBytes int64
	// Env is what commands see of the machine: proxies. It is part of no key and
	// no image, and the Dockerfile's own ENV counts more.
	Env []string
	// Secret is a secret of the job by name, as [builder.Options].Secret.
	Secret func(name string) (builder.Secret, error)
	// TmpDir holds the build context and the layers for a build's time; "" is
	// the system's.
	TmpDir string
	// Log receives kaniko's and the commands' output; nil discards it.
	Log io.Writer
	// Mode of the sandbox; "" is the best there is.
	Mode sandbox.Mode
	// Attempts and Delay are how often a request to a registry is tried, and
	// the first pause in between; 0 means 3 and 1 s.
	Attempts int
	Delay    time.Duration
}

// Engine builds Dockerfiles. It is safe for concurrent use.
type Engine struct {
	o   Options
	log *lockedWriter
}

var _ builder.Engine = (*Engine)(nil)

// New returns an engine. It looks at nothing yet.
func New(o Options) *Engine {
	e := &Engine{o: o, log: &lockedWriter{w: o.Log}}
	if o.Log == nil {
		e.log.w = io.Discard
	}
	if o.Attempts <= 0 {
		e.o.Attempts = 3
	}
	if o.CacheBytes <= 0 {
		e.o.CacheBytes = 10 << 30
	}
	if o.Delay <= 0 {
		e.o.Delay = time.Second
	}
	if o.Secret == nil {
		e.o.Secret = func(string) (builder.Secret, error) { return builder.Secret{}, builder.ErrNoSecret }
	}
	return e
}

// Source is what an image is built from.
type Source struct {
	// Path names the Dockerfile in messages, and chooses its ignore file.
	Path       string
	Dockerfile []byte
	// Context are the files that COPY and ADD find; Paths chooses some, nil
	// means all. .dockerignore counts.
	Context fs.FS
	Paths   []string
	Args    map[string]string
	Target  string
	Cache   builder.Cache
	// Env is as [Options].Env: where packages come from.
	Env []string
	// Secrets are names of those that instructions may mount.
	Secrets []string
	// List asks for the packages that the instructions installed.
	List bool
}

// Result is a built image.
type Result struct {
	Digest  v1.Hash
	Key     string // of everything that went into it
	Reused  bool   // found in the cache or at its tag
	Layers  []builder.Layer
	Sandbox string
	// Made are the packages in it; nil when it was found, or nobody asked.
	Made *builder.Made
	// Requests to registries, and bytes sent to them.
	Requests int
	Uploaded int64
}

// Build makes the image of a request with a Dockerfile and tags it by the
// request's key. Errors besides those of [builder.Engine]:
// [sandbox.ErrForbidden] in the chain when this machine lacks the rights.
func (e *Engine) Build(ctx context.Context, req builder.Request) (builder.Image, error) {
	image := builder.Image{Name: req.Name, Key: req.Key, Engine: EngineName}
	if req.Dockerfile == nil {
		return image, errors.New("kaniko: the request has no Dockerfile")
	}
	text, err := fs.ReadFile(req.Dockerfile.FS, req.Dockerfile.Path)
	if err != nil {
		return image, &builder.InputError{What: "read " + req.Dockerfile.Path, Next: "check the name of the Dockerfile", Err: err}
	}
	src := Source{
		Path: req.Dockerfile.Path, Dockerfile: text, Args: req.Dockerfile.Args, Cache: req.Dockerfile.Cache,
		Context: req.Code.FS, Paths: req.Code.Paths, Env: req.Dockerfile.Env, Secrets: req.Secrets, List: req.Origin != nil,
	}
	r := e.registry()
	tag, err := keyTag(req.Repository, req.Key)
	if err != nil {
		return image, fmt.Errorf("kaniko: %w", err)
	}
	if desc, err := r.find(ctx, tag); err != nil {
		return image, err
	} else if desc != nil {
		image.Ref, image.Reused = req.Repository.Digest(desc.Digest.String()), true
		image.Requests, image.Uploaded = r.requests(), r.uploaded()
		return image, nil
	}
	res, err := e.build(ctx, r, src, false, []name.Tag{tag})
	if err != nil {
		return image, err
	}
	image.Ref = req.Repository.Digest(res.Digest.String())
	image.Made = res.Made
	image.Layers, image.Sandbox, image.Requests, image.Uploaded = res.Layers, res.Sandbox, res.Requests, res.Uploaded
	return image, nil
}

// keyTag is the tag that says: the image of this key. A key that is no valid
// tag by itself is hashed.
func keyTag(repo name.Repository, key string) (name.Tag, error) {
	if key == "" {
		return name.Tag{}, errors.New("the request has no key")
	}
	sum := sha256.Sum256([]byte(key))
	return repo.Tag("kaniko-" + hex.EncodeToString(sum[:20])), nil
}

// BuildTo builds src and pushes the image to every one of dest. An image built
// before from equal input is taken from the cache.
func (e *Engine) BuildTo(ctx context.Context, src Source, dest []name.Tag) (Result, error) {
	return e.build(ctx, e.registry(), src, true, dest)
}

// build makes the image; with whole, the cache also has finished images.
func (e *Engine) build(ctx context.Context, r *registry, src Source, whole bool, dest []name.Tag) (res Result, err error) {
	defer func() { res.Requests, res.Uploaded = r.requests(), r.uploaded() }()
	if src.Context != nil && src.Paths == nil {
		// Before the folder for this build is made: it may lie in the context.
		if src.Paths, err = allNames(src.Context); err != nil {
			return res, fmt.Errorf("kaniko: list the build context: %w", err)
		}
	}
	work, done, err := workDir(e.o.TmpDir)
	if err != nil {
		return res, fmt.Errorf("kaniko: %w", err)
	}
	defer done()
	contextDir := filepath.Join(work, "context")
	if err := errors.Join(os.Mkdir(contextDir, 0o755), os.Chmod(contextDir, 0o755), os.Chmod(work, 0o755)); err != nil {
		return res, fmt.Errorf("kaniko: %w", err)
	}
	b := build{e: e, r: r, src: src, work: work, bases: map[string]v1.Image{}, keys: map[int][]string{}, stages: map[int]*built{}, trees: map[string]*rootfs.Tree{}}
	defer b.close()
	if b.files, err = copyContext(contextDir, src.Context, src.Paths, src.Path); err != nil {
		return res, fmt.Errorf("kaniko: copy the build context: %w", err)
	}
	if err := b.check(); err != nil {
		return res, err
	}
	if err := b.resolve(ctx); err != nil {
		return res, err
	}
	res.Key = b.imageKey()
	if whole {
		for _, repo := range src.Cache.Read {
			tag := repo.Tag("build-" + res.Key[:40])
			img, err := r.cached(ctx, tag)
			if err != nil {
				return res, err
			}
			if img != nil {
				fmt.Fprintf(e.log, "found in %s: nothing to build\n", tag)
				res.Reused = true
				return res, e.push(ctx, r, &res, img, dest)
			}
		}
		if src.Cache.Write != nil {
			dest = append([]name.Tag{src.Cache.Write.Tag("build-" + res.Key[:40])}, dest...)
		}
	}
	s, err := b.stage(ctx, b.d.target)
	res.Sandbox = b.sandbox
	if err != nil {
		return res, err
	}
	img, err := image(s.base, s.mountable(), s.config, s.history)
	if err == nil {
		err = describe(&res, s.base, s.layers)
	}
	if err != nil {
		return res, fmt.Errorf("kaniko: assemble the image: %w", err)
	}
	if src.List {
		if res.Made, err = b.installed(s); err != nil {
			return res, err
		}
	}
	if err := e.push(ctx, r, &res, img, dest); err != nil {
		return res, err
	}
	if b.shared {
		if err := b.store.trim(); err != nil {
			fmt.Fprintf(e.log, "the cache folder was not trimmed: %v\n", err)
		}
	}
	return res, nil
}

func (e *Engine) push(ctx context.Context, r *registry, res *Result, img v1.Image, dest []name.Tag) error {
	digest, err := img.Digest()
	if err != nil {
		return fmt.Errorf("kaniko: %w", err)
	}
	res.Digest = digest
	for _, t := range dest {
		if err := r.push(ctx, t, img); err != nil {
			return err
		}
	}
	return nil
}

// describe lists the layers for the table at the end of a log.
func describe(res *Result, base v1.Image, layers []made) error {
	below, err := base.Layers()
	if err != nil {
		return err
	}
	for _, l := range below {
		layers = append([]made{{Layer: l, title: "base", reused: true}}, layers...)
	}
	for i, l := range layers {
		if i < len(below) {
			l.Layer = below[i]
		}
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		size, err := l.Size()
		if err != nil {
			return err
		}
		res.Layers = append(res.Layers, builder.Layer{Title: l.title, Digest: digest.String(), Size: size, Reused: l.reused})
	}
	return nil
}

// memoryForChanges is how much memory the changes may take: a part of what is
// free, or 0 when that is little and they go to disk.
func memoryForChanges() int64 {
	free := meminfo("/proc/meminfo")
	if limit, ok := number("/sys/fs/cgroup/memory.max"); ok {
		used, _ := number("/sys/fs/cgroup/memory.current")
		free = min(free, limit-used)
	}
	const enough = 2 << 30
	if free < enough {
		return 0
	}
	return free / 2
}

func meminfo(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

func number(file string) (int64, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	var n int64
	_, err = fmt.Sscan(string(b), &n)
	return n, err == nil
}

// lockedWriter lets builds that run at once share a log.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
