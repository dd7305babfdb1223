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
// Equal input gives an equal image as far as the commands allow: times are set
// to 0, entries sorted. What kaniko would do quietly in another way than
// Docker is refused, with the line; see [Parse].
package kaniko

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// EngineName is how this engine is called in plans and reports.
const EngineName = "kaniko"

// version is part of every key: another kaniko, or another way to finish its
// layers, may give another image for the same input.
const version = "kaniko-1.24.0/1"

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
	// CacheDir keeps unpacked base images by digest; it must not lie on a
	// memory file system. "" uses a temporary folder for each build.
	CacheDir string
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
	if o.Delay <= 0 {
		e.o.Delay = time.Second
	}
	return e
}

// Source is what an image is built from.
type Source struct {
	// Path names the Dockerfile in messages.
	Path       string
	Dockerfile []byte
	// Context are the files that COPY and ADD find; Paths chooses some, nil
	// means all. .dockerignore counts.
	Context fs.FS
	Paths   []string
	Args    map[string]string
	Target  string
}

// Result is a built image.
type Result struct {
	Digest  v1.Hash
	Key     string // of everything that went into it
	Reused  bool   // found in the cache or at its tag
	Layers  []builder.Layer
	Sandbox string
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
		Path: req.Dockerfile.Path, Dockerfile: text, Args: req.Dockerfile.Args,
		Context: req.Code.FS, Paths: req.Code.Paths,
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
	res, err := e.build(ctx, r, src, nil, []name.Tag{tag})
	if err != nil {
		return image, err
	}
	image.Ref = req.Repository.Digest(res.Digest.String())
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

// BuildTo builds src and pushes the image to every one of dest. With cache, an
// image built before from equal input is taken from there, and a new one is
// put there.
func (e *Engine) BuildTo(ctx context.Context, src Source, cache *name.Repository, dest []name.Tag) (Result, error) {
	return e.build(ctx, e.registry(), src, cache, dest)
}

func (e *Engine) build(ctx context.Context, r *registry, src Source, cache *name.Repository, dest []name.Tag) (res Result, err error) {
	defer func() { res.Requests, res.Uploaded = r.requests(), r.uploaded() }()
	work, err := os.MkdirTemp(e.o.TmpDir, "kaniko-")
	if err != nil {
		return res, fmt.Errorf("kaniko: %w", err)
	}
	defer removeTree(work)
	contextDir := filepath.Join(work, "context")
	if err := errors.Join(os.Mkdir(contextDir, 0o755), os.Chmod(contextDir, 0o755)); err != nil {
		return res, fmt.Errorf("kaniko: %w", err)
	}
	contextHash, err := copyContext(contextDir, src.Context, src.Paths)
	if err != nil {
		return res, fmt.Errorf("kaniko: copy the build context: %w", err)
	}
	d, err := check(src, contextDir)
	if err != nil {
		return res, err
	}
	base, err := r.base(ctx, d.Base)
	if err != nil {
		return res, err
	}
	baseDigest, err := base.Digest()
	if err != nil {
		return res, r.failed("read", d.Base, err)
	}
	res.Key = buildKey(baseDigest, contextHash, src)
	if cache != nil {
		tag := cache.Tag("build-" + res.Key[:40])
		img, err := r.cached(ctx, tag)
		if err != nil {
			return res, err
		}
		if img != nil {
			fmt.Fprintf(e.log, "found in %s: nothing to build\n", tag)
			res.Reused = true
			return res, e.push(ctx, r, &res, img, dest)
		}
		dest = append([]name.Tag{tag}, dest...)
	}
	if base != empty.Image {
		if err := acceptable(d.Base, base); err != nil {
			return res, err
		}
	}
	img, layers, err := e.execute(ctx, r, work, src, from{base, d.Base}, &res)
	if err != nil {
		return res, err
	}
	defer closeAll(layers)
	if err := describe(&res, base, layers); err != nil {
		return res, fmt.Errorf("kaniko: %w", err)
	}
	return res, e.push(ctx, r, &res, img, dest)
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

// check refuses what can't be built, everything at once.
func check(src Source, contextDir string) (*Dockerfile, error) {
	refuse := func(p Problems) error {
		name := src.Path
		if name == "" {
			name = "Dockerfile"
		}
		return &builder.InputError{What: name + " can't be built", Next: "correct the lines named above", Err: p}
	}
	d, err := Parse(src.Dockerfile, src.Args, src.Target)
	var p Problems
	if errors.As(err, &p) {
		return nil, refuse(p)
	}
	if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	root, err := os.OpenRoot(contextDir)
	if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	defer root.Close()
	if err := d.Check(root); errors.As(err, &p) {
		return nil, refuse(p)
	} else if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	return d, nil
}

// acceptable refuses a base that brings instructions of its own.
func acceptable(ref string, base v1.Image) error {
	c, err := base.ConfigFile()
	if err != nil {
		return fmt.Errorf("kaniko: %s: %w", ref, err)
	}
	if len(c.Config.OnBuild) > 0 {
		return &builder.InputError{What: "the base image " + ref + " has ONBUILD instructions, which are not possible here", Next: "write them into the Dockerfile"}
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return &builder.InputError{What: fmt.Sprintf("the base image %s is for %s/%s, and this machine builds linux/%s", ref, c.OS, c.Architecture, runtime.GOARCH), Next: "use a base image for this architecture"}
	}
	return nil
}

// buildKey is equal when the image would be: the base, every file's name and
// content, the Dockerfile and its arguments, and how layers are made.
func buildKey(base v1.Hash, contextHash string, src Source) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%q\n%q\n", version, layer.Gzip.ID(), base, contextHash, src.Dockerfile, src.Target)
	for _, a := range argList(src.Args) {
		fmt.Fprintf(h, "%q\n", a)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func argList(args map[string]string) []string {
	var list []string
	for k, v := range args {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return list
}

// from is a base image and how it was called.
type from struct {
	v1.Image
	ref string
}

// execute carries the instructions out in a sandbox.
func (e *Engine) execute(ctx context.Context, r *registry, work string, src Source, base from, res *Result) (v1.Image, []titled, error) {
	mode, reason := e.o.Mode, ""
	if mode == "" {
		if mode, reason = sandbox.Detect(ctx); ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
	}
	if mode == sandbox.None {
		return nil, nil, fmt.Errorf("kaniko: a Dockerfile needs a sandbox: %w: %s", sandbox.ErrForbidden, reason)
	}
	res.Sandbox = string(mode)
	lower, err := e.lower(ctx, r, work, base, mode)
	if err != nil {
		return nil, nil, err
	}
	inside := filepath.Join(work, "kaniko")
	out := filepath.Join(inside, "out")
	order := Order{Dockerfile: src.Dockerfile, Args: argList(src.Args), Target: src.Target, Platform: "linux/" + runtime.GOARCH}
	if base.Image != empty.Image {
		if order.Manifest, err = base.RawManifest(); err == nil {
			order.Config, err = base.RawConfigFile()
		}
		if err != nil {
			return nil, nil, fmt.Errorf("kaniko: read the base image: %w", err)
		}
	}
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, nil, fmt.Errorf("kaniko: %w", err)
	}
	order.Nonce = hex.EncodeToString(nonce)
	err = errors.Join(
		os.Mkdir(inside, 0o755), os.Mkdir(out, 0o755), os.Mkdir(filepath.Join(inside, "context"), 0o755),
		os.WriteFile(filepath.Join(inside, "executor"), nil, 0o644),
		os.WriteFile(filepath.Join(inside, "guard"), []byte(order.Nonce), 0o444),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("kaniko: %w", err)
	}
	outcome, err := e.child(ctx, mode, lower, work, out, order)
	if err != nil {
		return nil, nil, err
	}
	below := &known{owners: mode == sandbox.Root, now: map[string]bool{}}
	if below.root, err = os.OpenRoot(lower); err != nil {
		return nil, nil, fmt.Errorf("kaniko: %w", err)
	}
	defer below.root.Close()
	img, layers, err := assemble(base.Image, below, out, e.o.TmpDir, outcome)
	var input *builder.InputError
	if err != nil && !errors.As(err, &input) {
		err = fmt.Errorf("kaniko: assemble the image: %w", err)
	}
	return img, layers, err
}

// lower is the folder with the base's files, unpacked now or before.
func (e *Engine) lower(ctx context.Context, r *registry, work string, base from, mode sandbox.Mode) (string, error) {
	digest, err := base.Digest()
	if err != nil {
		return "", fmt.Errorf("kaniko: %w", err)
	}
	dir := filepath.Join(work, "base")
	if e.o.CacheDir != "" && base.Image != empty.Image {
		// A user namespace sees its own owner only, so its copy is another.
		dir = filepath.Join(e.o.CacheDir, "base", fmt.Sprintf("%s-%d-%s", mode, os.Geteuid(), digest.Hex))
	}
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return dir, nil
	}
	fmt.Fprintf(e.log, "unpacking the base image %s\n", digest)
	if err := unpack(ctx, base.Image, dir, mode == sandbox.Root); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", r.failed("unpack", base.ref, err)
	}
	return dir, nil
}

// child runs the executor and reads its answer.
func (e *Engine) child(ctx context.Context, mode sandbox.Mode, lower, work, out string, order Order) (Outcome, error) {
	var o Outcome
	executor, err := filepath.Abs(e.o.Executor)
	if err != nil {
		return o, fmt.Errorf("kaniko: %w", err)
	}
	if st, err := os.Stat(executor); err != nil || !st.Mode().IsRegular() {
		return o, fmt.Errorf("kaniko: the executor %s: %w", e.o.Executor, errors.Join(err, fs.ErrNotExist))
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return o, fmt.Errorf("kaniko: %w", err)
	}
	defer pw.Close()
	spec := sandbox.Spec{
		Mode: mode, Lower: []string{lower}, AsInit: true, KeepCapabilities: true,
		Argv: []string{InsideExecutor, ChildCommand},
		Env:  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "DOCKER_CONFIG=/kaniko/none"},
		Binds: []sandbox.Bind{
			{Source: filepath.Join(work, "kaniko"), Target: insideDir},
			{Source: executor, Target: InsideExecutor, ReadOnly: true},
			{Source: filepath.Join(work, "context"), Target: InsideContext, ReadOnly: true},
		},
		ExtraFiles: []*os.File{pr}, Stdout: e.log, Stderr: e.log, Hostname: "build",
	}
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if real, err := filepath.EvalSymlinks(f); err == nil {
			spec.Binds = append(spec.Binds, sandbox.Bind{Source: real, Target: f, ReadOnly: true})
		}
	}
	if spec.TmpfsBytes = memoryForChanges(); spec.TmpfsBytes == 0 {
		spec.Upper = filepath.Join(work, "changes")
		if err := os.Mkdir(spec.Upper, 0o755); err != nil {
			pr.Close()
			return o, fmt.Errorf("kaniko: %w", err)
		}
	}
	p, err := sandbox.Start(ctx, spec)
	pr.Close()
	if err != nil {
		return o, fmt.Errorf("kaniko: %w", err)
	}
	sent := json.NewEncoder(pw).Encode(order)
	pw.Close()
	err = p.Wait()
	var exited *run.ExitError
	if err != nil && !errors.As(err, &exited) {
		return o, err
	}
	root, openErr := os.OpenRoot(out)
	if openErr != nil {
		return o, fmt.Errorf("kaniko: %w", openErr)
	}
	defer root.Close()
	b, readErr := readFile(root, "outcome.json", 1<<20)
	if readErr == nil {
		readErr = json.Unmarshal(b, &o)
	}
	switch {
	case readErr != nil && err != nil:
		return o, fmt.Errorf("kaniko: the executor ended early: %w%s", err, tail(exited))
	case readErr != nil:
		return o, fmt.Errorf("kaniko: the executor's answer: %w", errors.Join(readErr, sent))
	case o.Code != 0:
		what := fmt.Sprintf("%s exited with code %d", o.Command, o.Code)
		return o, &builder.InputError{What: what, Next: "read the command's output above and correct the Dockerfile"}
	case o.Failure != "":
		what := "the Dockerfile can't be built"
		if o.Command != "" {
			what = o.Command
		}
		return o, &builder.InputError{What: what, Next: "read the output above and correct the Dockerfile", Err: errors.New(o.Failure)}
	case err != nil:
		return o, fmt.Errorf("kaniko: %w%s", err, tail(exited))
	}
	return o, nil
}

func tail(e *run.ExitError) string {
	if e == nil || e.Tail == "" {
		return ""
	}
	return "\n" + e.Tail
}

// describe lists the layers for the table at the end of a log.
func describe(res *Result, base v1.Image, layers []titled) error {
	below, err := base.Layers()
	if err != nil {
		return err
	}
	for _, l := range below {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		size, err := l.Size()
		if err != nil {
			return err
		}
		res.Layers = append(res.Layers, builder.Layer{Title: "base", Digest: digest.String(), Size: size, Reused: true})
	}
	for _, l := range layers {
		i := l.Info()
		res.Layers = append(res.Layers, builder.Layer{Title: l.title, Digest: i.Digest.String(), Size: i.Size})
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
