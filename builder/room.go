package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kuroko-faas/kuroko/builder/registry"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Command is a program of a build: a package manager, or what the repository
// itself runs. It is foreign code: it sees its build image, Dir and the
// network, and no other file, process or variable.
type Command struct {
	// Image is the build image that becomes its root. Without one it runs in
	// the job container.
	Image name.Digest
	Argv  []string
	// Env comes on top of the image's own environment and [Options.Env].
	Env []string
	// Secrets are names for [Options.Secret]: each is a variable as the job has
	// it, and in a sandbox also a file in [SecretDir].
	Secrets []string
	// Dir is the folder that it works in, and all of the caller's that it can
	// write to. Inside it is [InsideDir], and a .git in it is empty.
	Dir string
	// Instead are files of Dir that it sees with another content, read-only. The
	// job container shows them as they are.
	Instead map[string][]byte
	// Home are files that its home has, by name: settings of programs. The home
	// is removed with the command.
	Home map[string][]byte
	// Boxed names a program that has to run at [InsideDir]: where there is no
	// sandbox it does not run.
	Boxed          string
	Stdout, Stderr io.Writer // may be nil, and may be one
	// Notice is told what takes long before it begins; nil is silence.
	Notice func(string)
}

// Ran says where a command ran.
type Ran struct {
	Sandbox string // SandboxNamespaces or SandboxNone
	Image   string // digest of the build image; empty for none
	Why     string // why there was no sandbox
}

// The places in which foreign commands run.
const (
	// SandboxNamespaces is a root of its own: that of a build image.
	SandboxNamespaces = "namespaces"
	// SandboxNone is the job container itself, with another environment.
	SandboxNone = "none"
)

// InsideDir is where [Command.Dir] lies in a sandbox.
const InsideDir = "/app"

// MissingTool is a command whose program is neither where it should run nor
// where it could.
type MissingTool struct {
	Program string
	Image   string // the build image that lacks it; empty for the job container
	Why     string // why the job container was all there is
}

func (e *MissingTool) Error() string {
	if e.Image != "" {
		return fmt.Sprintf("the build image %s has no %s", e.Image, e.Program)
	}
	return fmt.Sprintf("%s can't run in a sandbox (%s), and the job container has no %s", e.Program, e.Why, e.Program)
}

// DefaultTreeBytes is about how much [Options.TreeDir] may hold when
// [Options.TreeBytes] is 0.
const DefaultTreeBytes = 10 << 30

// sandboxUser is who commands are inside where nothing says otherwise.
const sandboxUser = 65532

// Run runs a command in its build image, in namespaces of its own, or in the
// job container where the machine does not allow that or there is no image. A
// program that uses it begins with internal/sandbox.Main.
//
// Errors: [*run.ExitError] for a command that failed; [*MissingTool]; those of
// [Engine] for an image that can't be had; ctx's cause, when everything that
// the command started has ended.
func (e *Layers) Run(ctx context.Context, c Command) (Ran, error) {
	if c.Image.DigestStr() == "" {
		return e.runHere(ctx, c, "there is no build image")
	}
	mode, why := e.o.Mode, "not asked for"
	if mode == "" {
		mode, why = sandbox.Detect(ctx)
	}
	if ctx.Err() != nil {
		return Ran{}, context.Cause(ctx)
	}
	if mode == sandbox.None {
		return e.runHere(ctx, c, why)
	}
	err := e.runInside(ctx, c, mode)
	if ctx.Err() != nil {
		return Ran{}, context.Cause(ctx)
	}
	if errors.Is(err, sandbox.ErrForbidden) {
		return e.runHere(ctx, c, err.Error())
	}
	ran := Ran{Sandbox: SandboxNamespaces, Image: c.Image.DigestStr()}
	var exit *run.ExitError
	var missing *MissingTool
	if err != nil && !errors.As(err, &exit) && !errors.As(err, &missing) {
		err = explain("pull "+c.Image.String(), err)
	}
	return ran, err
}

// runHere runs the command in the job container.
func (e *Layers) runHere(ctx context.Context, c Command, why string) (Ran, error) {
	ran := Ran{Sandbox: SandboxNone, Why: why}
	if c.Boxed != "" {
		return ran, &MissingTool{Program: c.Boxed, Why: why}
	}
	env := merge(e.o.Env, c.Env)
	program, err := lookPath(c.Argv[0], env)
	if err != nil {
		return ran, &MissingTool{Program: c.Argv[0], Why: why}
	}
	home, err := os.MkdirTemp(e.o.TempDir, "kuroko-home-*")
	if err != nil {
		return ran, fmt.Errorf("builder: %w", err)
	}
	defer rootfs.Remove(home)
	tmp := filepath.Join(home, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o700), furnish(home, c.Home)); err != nil {
		return ran, fmt.Errorf("builder: %w", err)
	}
	secrets, err := e.secretsHere(c.Secrets, home)
	if err != nil {
		return ran, err
	}
	return ran, run.Command{Path: program, Args: c.Argv[1:], Dir: c.Dir, Stdout: c.Stdout, Stderr: c.Stderr,
		Env: merge([]string{"HOME=" + home, "TMPDIR=" + tmp}, env, secrets)}.Run(ctx)
}

// machine is the part of the job's environment that holds in a build image. A
// proxy is not asked for what the runner itself shows on this machine.
func (e *Layers) machine() []string {
	var out []string
	for _, kv := range e.o.Env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case name == "PATH" || name == "LANG":
			continue
		case strings.EqualFold(name, "NO_PROXY") && value != "":
			kv += ",127.0.0.1"
		}
		out = append(out, kv)
	}
	return append([]string{"NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1"}, out...)
}

// certificates are files of the machine that its environment names, without
// what lies in another of them.
func (e *Layers) certificates() []string {
	var out []string
	for _, kv := range e.o.Env {
		name, value, _ := strings.Cut(kv, "=")
		if slices.Contains([]string{"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"}, name) && filepath.IsAbs(value) {
			out = append(out, filepath.Clean(value))
		}
	}
	slices.Sort(out)
	return slices.CompactFunc(out, func(a, b string) bool { return a == b || strings.HasPrefix(b, a+"/") })
}

// lookPath finds a program in env's PATH.
func lookPath(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		_, err := os.Stat(program)
		return program, err
	}
	for _, kv := range env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(dirs) {
			p := filepath.Join(dir, program)
			if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", fs.ErrNotExist
}

// merge joins environments; of two values for a name the later counts.
func merge(lists ...[]string) []string {
	at := map[string]int{}
	var out []string
	for _, kv := range slices.Concat(lists...) {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

// runInside runs the command with its build image as the root. Errors with
// [sandbox.ErrForbidden] in the chain: it was not started.
func (e *Layers) runInside(ctx context.Context, c Command, mode sandbox.Mode) (err error) {
	s := e.reg.Session()
	image, err := e.base(ctx, s, c.Image)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(e.o.TempDir, "kuroko-room-*")
	if err != nil {
		return err
	}
	defer rootfs.Remove(scratch)
	dir, err := filepath.EvalSymlinks(c.Dir)
	if err != nil {
		return err
	}
	uid, gid, err := inside(mode, dir)
	if err != nil {
		return err
	}
	home, tmp := filepath.Join(scratch, "home"), filepath.Join(scratch, "tmp")
	if err := errors.Join(os.Chmod(scratch, 0o755), os.Mkdir(home, 0o755), os.Mkdir(tmp, 0o755), os.Chmod(tmp, 0o777|fs.ModeSticky)); err != nil {
		return err
	}
	if err := furnish(home, c.Home); err != nil {
		return err
	}
	at := "/home/nonroot"
	if mode == sandbox.Root {
		if uid == 0 {
			at = "/root" // Java asks the user database
		}
		err := filepath.WalkDir(home, func(p string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, uid, gid))
		})
		if err != nil {
			return err
		}
	}
	secrets, files, err := e.secretsInside(c.Secrets, uid, gid)
	if err != nil {
		return err
	}
	spec := sandbox.Spec{
		Mode: mode, UID: uid, GID: gid, Dir: InsideDir, Argv: c.Argv, Hostname: "build", Stdout: c.Stdout, Stderr: c.Stderr,
		Env:   merge(image.config.Config.Env, e.machine(), []string{"HOME=" + at, "TMPDIR=/tmp"}, c.Env, secrets),
		Binds: append([]sandbox.Bind{{Source: dir, Target: InsideDir}, {Source: home, Target: at}, {Source: tmp, Target: "/tmp"}}, files...),
	}
	hidden, err := hideGit(dir, filepath.Join(scratch, "git"))
	if err != nil {
		return err
	}
	spec.Binds = append(spec.Binds, hidden...)
	for file, data := range c.Instead {
		spec.Binds = append(spec.Binds, sandbox.Bind{Target: InsideDir + "/" + file, File: &sandbox.File{Data: data, Mode: 0o444, UID: uid, GID: gid}})
	}
	for _, p := range append([]string{"/etc/resolv.conf", "/etc/hosts"}, e.certificates()...) {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			spec.Binds = append(spec.Binds, sandbox.Bind{Source: real, Target: filepath.Clean(p), ReadOnly: true})
		}
	}
	store := rootfs.Store{Dir: e.o.TreeDir}
	if store.Dir == "" {
		store.Dir = filepath.Join(scratch, "image")
	}
	var p *sandbox.Process
	var tree *rootfs.Tree
	if err = sandbox.ErrNoOverlay; !e.o.NoOverlay {
		p, tree, err = e.enter(ctx, s, c, image, spec, store, true)
	}
	if errors.Is(err, sandbox.ErrNoOverlay) {
		// A copy of one's own, which is thrown away whatever is written to it.
		p, tree, err = e.enter(ctx, s, c, image, spec, rootfs.Store{Dir: filepath.Join(scratch, "own")}, false)
	}
	if err != nil {
		return err
	}
	defer tree.Close()
	return p.Wait()
}

// enter starts the command over the image's files in a store: below an
// overlay, or as they are.
func (e *Layers) enter(ctx context.Context, s *registry.Session, c Command, image *baseImage, spec sandbox.Spec, store rootfs.Store, overlay bool) (*sandbox.Process, *rootfs.Tree, error) {
	tree, err := e.unpack(ctx, s, c, image, spec.Mode, store)
	if err != nil {
		return nil, nil, err
	}
	if spec.Root = tree.Dir; overlay {
		spec.Root, spec.Lower = "", []string{tree.Dir}
	}
	p, err := sandbox.Start(ctx, spec)
	if errors.Is(err, fs.ErrNotExist) {
		err = &MissingTool{Program: c.Argv[0], Image: c.Image.String()}
	}
	if err != nil {
		tree.Close()
		return nil, nil, err
	}
	return p, tree, nil
}

// hideGit covers the folder's .git with nothing, made at the given place: its
// configuration has the job's token in the address that GitLab fetched from, and
// a commit's number is an input that no key has. Git takes it for no repository.
func hideGit(dir, nothing string) ([]sandbox.Bind, error) {
	info, err := os.Lstat(filepath.Join(dir, gitDir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case info.IsDir():
		err = os.Mkdir(nothing, 0o755)
	case info.Mode().IsRegular(): // a worktree's names the folder
		err = os.WriteFile(nothing, nil, 0o644)
	default: // a link to a folder of the tree is one of its files, any other leads nowhere
		return nil, nil
	}
	return []sandbox.Bind{{Source: nothing, Target: InsideDir + "/" + gitDir, ReadOnly: true}}, err
}

const gitDir = ".git"

// furnish writes a home's files.
func furnish(home string, files map[string][]byte) error {
	for file, data := range files {
		p := filepath.Join(home, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o644)); err != nil {
			return err
		}
	}
	return nil
}

// inside is who the command is. Root gives up its rights for good, so it is
// whom the folder belongs to; a user namespace has one user.
func inside(mode sandbox.Mode, dir string) (uid, gid int, err error) {
	if mode != sandbox.Root {
		return sandboxUser, sandboxUser, nil
	}
	st, err := os.Stat(dir)
	if err != nil {
		return 0, 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("%s has no owner", dir)
	}
	return int(sys.Uid), int(sys.Gid), nil
}

// unpack finds the image's files in a store, or pulls and unpacks them.
func (e *Layers) unpack(ctx context.Context, s *registry.Session, c Command, image *baseImage, mode sandbox.Mode, store rootfs.Store) (*rootfs.Tree, error) {
	var size int64
	var layers []v1.Layer
	for i, d := range image.manifest.Layers {
		size += d.Size
		l, err := partial.CompressedToLayer(pulled{ctx, s, c.Image.Context(), d, image.config.RootFS.DiffIDs[i]})
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	want := rootfs.Want{Name: sumOf(image.Manifest).Hex, Owners: mode == sandbox.Root, Layers: func() ([]v1.Layer, error) {
		if c.Notice != nil {
			c.Notice(fmt.Sprintf("unpack build image %s (%d MiB)", c.Image, size>>20))
		}
		return layers, nil
	}}
	for try := 1; ; try++ {
		tree, kept, err := store.Tree(ctx, want)
		var re *registry.Error
		if errors.As(err, &re) && re.Temporary() && try < maxPulls && ctx.Err() == nil {
			continue // the connection broke within a layer: requests alone are repeated below
		}
		if err == nil && !kept && store.Dir == e.o.TreeDir {
			limit := e.o.TreeBytes
			if limit == 0 {
				limit = DefaultTreeBytes
			}
			_ = store.Trim(limit) // a courtesy to the disk
		}
		return tree, err
	}
}

// maxPulls is how often an image whose transfer breaks is begun.
const maxPulls = 3

// pulled is a layer in a registry.
type pulled struct {
	ctx  context.Context
	s    *registry.Session
	repo name.Repository
	d    v1.Descriptor
	diff v1.Hash
}

func (l pulled) Digest() (v1.Hash, error)            { return l.d.Digest, nil }
func (l pulled) DiffID() (v1.Hash, error)            { return l.diff, nil }
func (l pulled) Size() (int64, error)                { return l.d.Size, nil }
func (l pulled) MediaType() (types.MediaType, error) { return l.d.MediaType, nil }

func (l pulled) Compressed() (io.ReadCloser, error) {
	return l.s.Blob(l.ctx, l.repo, l.d.Digest, l.d.Size)
}
