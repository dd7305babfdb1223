package kaniko

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// mount is what a RUN sees in one place and its layer does not have. kaniko
// knows no mounts: a RUN with some is carried out in a sandbox of its own,
// whose root has them.
type mount struct {
	kind instructions.MountType
	// target is absolute, or below the base's working folder.
	target string
	id     string // of a secret or a cache
	// env is the variable that has a secret; file says that a file has it too.
	env      string
	file     bool
	mode     fs.FileMode
	uid, gid int
	bytes    int64
	sharing  instructions.ShareMode
	// source is what a bind shows, without a slash in front: of the context, of
	// a stage, or of an image.
	source    string
	fromStage int    // -1 for none
	fromImage string // "" for none
}

// Secret is one that a RUN mounts.
type Secret struct {
	ID           string
	Required     bool
	Line, Column int
}

// defaultMemory bounds a tmpfs that says nothing of its size.
const defaultMemory = 1 << 30

// mounts reads the mounts of a RUN.
func (c *checker) mounts(run *instructions.RunCommand, st *step) {
	const flag = "--mount"
	var unknown []string
	err := run.Expand(func(word string) (string, error) {
		out, names, err := c.expand(word)
		unknown = append(unknown, names...)
		return out, err
	})
	if err == nil && len(unknown) > 0 {
		err = fmt.Errorf("the value of %s is not known here; declare it with ARG", strings.Join(unknown, ", "))
	}
	if err != nil {
		c.sayAt(flag, "RunMount", "RUN --mount: %v", err)
		return
	}
	for _, m := range instructions.GetMounts(run) {
		no := func(format string, args ...any) {
			c.sayAt(flag, "RunMount", "RUN --mount=type=%s: %s", m.Type, fmt.Sprintf(format, args...))
		}
		x := mount{kind: m.Type, target: m.Target, id: m.CacheID, mode: 0o755, bytes: m.SizeLimit, sharing: m.CacheSharing, fromStage: -1}
		if m.UID != nil {
			x.uid = int(*m.UID)
		}
		if m.GID != nil {
			x.gid = int(*m.GID)
		}
		switch m.Type {
		case instructions.MountTypeSSH:
			no("is not possible here: a job has no agent; use a token, with type=secret")
			continue
		case instructions.MountTypeSecret:
			x.secret(m)
			l, column := place(c.lines, c.where, flag)
			st.secrets = append(st.secrets, Secret{ID: x.id, Required: m.Required, Line: l, Column: column})
		case instructions.MountTypeCache:
			if m.From != "" || m.Source != "" {
				no("from and source are not possible here: a cache begins empty")
				continue
			}
			if m.ReadOnly {
				no("a cache that can't be written is not possible here")
				continue
			}
			if x.id == "" {
				x.id = path.Clean(x.target)
			}
		case instructions.MountTypeTmpfs:
			if x.bytes <= 0 {
				x.bytes = defaultMemory
			}
		case instructions.MountTypeBind:
			if !m.ReadOnly {
				no("rw is not possible here: copy what the command changes")
				continue
			}
			if !c.bindFrom(m, &x, st) {
				continue
			}
		}
		if m.Mode != nil {
			x.mode = fs.FileMode(*m.Mode).Perm()
		}
		if m.Type != instructions.MountTypeSecret || x.file {
			if !c.mountTarget(&x) {
				continue
			}
		}
		st.mounts = append(st.mounts, x)
	}
}

// secret sets what a secret's mount leaves out, as BuildKit does.
func (x *mount) secret(m *instructions.Mount) {
	x.mode = 0o400
	if m.Source != "" {
		x.id = m.Source
	}
	if x.id == "" {
		x.id = path.Base(m.Target)
	}
	if x.file = m.Env == nil || m.Target != ""; x.target == "" {
		x.target = path.Join(builder.SecretDir, path.Base(x.id))
	}
	if m.Env != nil {
		if x.env = *m.Env; x.env == "" {
			x.env = x.id
		}
	}
}

// bindFrom finds what a bind shows, and says whether that is possible.
func (c *checker) bindFrom(m *instructions.Mount, x *mount, st *step) bool {
	x.source = clean(m.Source)
	if m.From != "" {
		if x.fromStage = c.find(m.From, c.current); x.fromStage < 0 {
			x.fromImage = m.From
			if _, err := strconv.Atoi(m.From); err == nil || strings.EqualFold(m.From, c.stages[c.current].Name) {
				c.sayAt("--mount", "RunMount", "RUN --mount: from=%s: there is no such stage before this one", m.From)
				return false
			}
		}
		return true
	}
	if rel := path.Clean(strings.TrimLeft(m.Source, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
		c.sayAt("--mount", "RunMount", "RUN --mount: source=%s leaves the build context", m.Source)
		return false
	}
	_, column := place(c.lines, c.where, "--mount")
	if x.source == "" {
		x.source = "."
	}
	st.sources, st.column = append(st.sources, x.source), append(st.column, column)
	return true
}

// mountTarget makes a target as absolute as the file tells.
func (c *checker) mountTarget(x *mount) bool {
	if !path.IsAbs(x.target) {
		if c.dir == nil {
			c.sayAt("--mount", "RunMount", "RUN --mount: target=%s is below a WORKDIR that is not known here; write it from the root", x.target)
			return false
		}
		x.target = path.Join(*c.dir, x.target)
	}
	if x.target = path.Clean(x.target); x.target == "/" {
		c.sayAt("--mount", "RunMount", "RUN --mount: / can't be a target")
		return false
	}
	if l := Lost(x.target); l != "" {
		c.sayAt("--mount", "RunMount", "RUN --mount: target=%s lies in %s, which is the sandbox's own", x.target, l)
		return false
	}
	return true
}

// workdir follows WORKDIR, from the base's on.
func (c *checker) workdir(word string) {
	to, unknown, err := c.expand(word)
	switch {
	case err != nil || len(unknown) > 0 || c.dir == nil && !path.IsAbs(to):
		c.dir = nil
	case path.IsAbs(to):
		c.dir = &to
	default:
		c.dir = new(path.Join(*c.dir, to))
	}
}

// MissingSecrets says what there is to say about secrets that instructions
// mount and names do not list: one that is required is refused. because begins
// the reason, before the secret's name.
func (d *Dockerfile) MissingSecrets(names []string, because string) Problems {
	var out Problems
	for _, s := range d.Secrets {
		if slices.Contains(names, s.ID) {
			continue
		}
		p := Problem{Line: s.Line, Column: s.Column, Rule: "RunMountSecret", Advice: !s.Required, Text: "RUN --mount=type=secret: " + because + " " + s.ID}
		if !s.Required {
			p.Text += ", so the command runs without it"
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// mountKeys are what of a step's mounts decides its result, beside its text:
// what binds show, and which secrets there are. Their values, and what is in a
// cache, take no part, as with BuildKit.
func (b *build) mountKeys(st step) ([]string, error) {
	var parts []string
	for _, m := range st.mounts {
		switch {
		case m.kind == instructions.MountTypeSecret:
			parts = append(parts, "secret", strconv.FormatBool(slices.Contains(b.src.Secrets, m.id)))
		case m.fromStage >= 0:
			from, err := b.stageKeys(m.fromStage)
			if err != nil {
				return nil, err
			}
			parts = append(parts, from[len(from)-1])
		case m.fromImage != "":
			digest, err := b.bases[m.fromImage].Digest()
			if err != nil {
				return nil, fmt.Errorf("kaniko: %w", err)
			}
			parts = append(parts, digest.String())
		case m.kind == instructions.MountTypeBind:
			parts = append(parts, b.files.sum([]string{m.source}, false))
		}
	}
	return parts, nil
}

// reveals refuses a layer that holds the value of a secret: a command has
// written down what it was only shown.
func (b *build) reveals(root *os.Root, layer string, st step) error {
	if len(b.src.Secrets) == 0 {
		return nil
	}
	var values []string
	for _, n := range b.src.Secrets {
		s, err := b.e.o.Secret(n)
		if err != nil {
			return fmt.Errorf("kaniko: secret %s: %w", n, err)
		}
		values = append(values, string(s.Value))
	}
	f, err := root.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		i, err := redact.Find(r, values)
		if err != nil {
			return err
		}
		if i >= 0 {
			return builder.Revealed(fmt.Sprintf("line %d: %s", st.line, FirstLine(st.title)), "/"+strings.TrimPrefix(h.Name, "/"), b.src.Secrets[i])
		}
	}
}

// alone says whether an instruction needs a sandbox of its own.
func (s step) alone() bool { return len(s.mounts) > 0 }

// piece is how many steps from at on one sandbox carries out.
func piece(chain []step, at int) int {
	n := 0
	for _, s := range chain[at:] {
		if s.alone() {
			return max(n, 1)
		}
		n++
	}
	return n
}

// mounted is what the mounts of a step come to: binds of its sandbox and
// variables of its command. done releases them.
type mounted struct {
	binds []sandbox.Bind
	env   []string
	done  func()
}

func (b *build) mounted(ctx context.Context, st step, dir string) (out mounted, err error) {
	var release []func()
	out.done = func() {
		for _, f := range release {
			f()
		}
	}
	defer func() {
		if err != nil {
			out.done()
			out.done = nil
		}
	}()
	for _, m := range st.mounts {
		target := m.target
		if !path.IsAbs(target) {
			if target = path.Join("/", dir, target); target == "/" || Lost(target) != "" {
				return out, b.refusedMount(st, m, "target="+m.target+" can't be a mount's: it is "+target)
			}
		}
		if b.mode == sandbox.UserNS && (m.uid != 0 || m.gid != 0) {
			return out, b.refusedMount(st, m, "another uid or gid than 0 is not possible without root on this machine")
		}
		bind := sandbox.Bind{Target: target}
		switch m.kind {
		case instructions.MountTypeSecret:
			if !slices.Contains(b.src.Secrets, m.id) {
				continue // not required: looked at before
			}
			s, err := b.e.o.Secret(m.id)
			if err != nil {
				return out, fmt.Errorf("kaniko: secret %s: %w", m.id, err)
			}
			if m.env != "" {
				out.env = append(out.env, m.env+"="+string(s.Value))
			}
			if !m.file {
				continue
			}
			bind.File = &sandbox.File{Data: s.Value, Mode: m.mode, UID: m.uid, GID: m.gid}
		case instructions.MountTypeTmpfs:
			bind.Memory = m.bytes
		case instructions.MountTypeCache:
			cache, done, err := b.cacheFolder(ctx, m)
			if err != nil {
				return out, fmt.Errorf("kaniko: the cache %s: %w", m.id, err)
			}
			release = append(release, done)
			bind.Source = cache
		case instructions.MountTypeBind:
			if err := b.bindOf(ctx, m, &bind); err != nil {
				return out, err
			}
		}
		out.binds = append(out.binds, bind)
	}
	return out, nil
}

func (b *build) refusedMount(st step, m mount, why string) error {
	return &builder.InputError{What: fmt.Sprintf("line %d: RUN --mount=type=%s: %s", st.line, m.kind, why), Next: "correct the Dockerfile"}
}

// bindOf is what a bind shows.
func (b *build) bindOf(ctx context.Context, m mount, bind *sandbox.Bind) error {
	var list []*rootfs.Tree
	switch {
	case m.fromStage >= 0:
		other, err := b.stage(ctx, m.fromStage)
		if err == nil {
			list, err = b.unpacked(ctx, other, nil)
		}
		if err != nil {
			return err
		}
	case m.fromImage != "":
		var err error
		if list, err = b.unpacked(ctx, &built{ref: m.fromImage, base: b.bases[m.fromImage]}, nil); err != nil {
			return err
		}
	default:
		to, _ := b.files.follow(m.source) // check has refused what leads out
		bind.Source, bind.ReadOnly = filepath.Join(b.work, "context", to), true
		return nil
	}
	bind.Lower, bind.Part = dirs(list), m.source
	return nil
}

// cacheFolder is a folder that later builds find again, held until done. Its
// content is of builds that write to the same repository alone, and it may be
// empty at any time: that is all that a cache promises.
func (b *build) cacheFolder(ctx context.Context, m mount) (dir string, done func(), err error) {
	name := b.local(keyOf("mount", string(b.mode), m.id, strconv.Itoa(m.uid), strconv.Itoa(m.gid), m.mode.String()))
	dir = filepath.Join(b.store.dir, "mount", name)
	how := unix.LOCK_SH
	if m.sharing == instructions.MountSharingLocked || m.sharing == instructions.MountSharingPrivate {
		how = unix.LOCK_EX
	}
	for {
		if err := makeFolder(dir, m); err != nil {
			return "", nil, err
		}
		held, err := hold(dir, how)
		if err != nil {
			return "", nil, err
		}
		if held != nil {
			return dir, func() {
				now := time.Now()
				_ = os.Chtimes(dir, now, now)
				held.Close()
			}, nil
		}
		if m.sharing == instructions.MountSharingPrivate {
			own, err := os.MkdirTemp(b.work, "cache-")
			if err == nil {
				err = dress(own, m)
			}
			return own, func() { _ = rootfs.Remove(own) }, err
		}
		select {
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// makeFolder makes a cache's folder, whole or not at all.
func makeFolder(dir string, m mount) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(filepath.Dir(dir), ".part-")
	if err != nil {
		return err
	}
	if err := dress(fresh, m); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	if err := os.Rename(fresh, dir); err != nil {
		if rmErr := os.Remove(fresh); rmErr != nil {
			return errors.Join(err, rmErr)
		}
		if errors.Is(err, fs.ErrExist) {
			return nil // another build made it, and it is not empty any more
		}
		return err
	}
	return nil
}

// dress gives a folder the owner and mode that the mount asks for.
func dress(dir string, m mount) error {
	if m.uid != 0 || m.gid != 0 {
		if err := os.Chown(dir, m.uid, m.gid); err != nil {
			return err
		}
	}
	return os.Chmod(dir, m.mode)
}

// hold locks a folder; nil when another has it, or it was just removed.
func hold(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	mine, err := f.Stat()
	if now, statErr := os.Stat(dir); err == nil && statErr == nil && os.SameFile(mine, now) {
		return f, nil
	}
	f.Close()
	return nil, err
}

// dropFolder removes a cache's folder that nobody uses.
func dropFolder(dir string) bool {
	f, err := hold(dir, unix.LOCK_EX)
	if f == nil || err != nil {
		return false
	}
	defer f.Close()
	return rootfs.Remove(dir) == nil
}

// folderSize is how much a cache's folder takes.
func folderSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is in use, and counts next time
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	return n
}
