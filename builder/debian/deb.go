package debian

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// maxControl bounds a package's control file; Debian's largest is 60 KiB.
const maxControl = 1 << 20

// control is the part of a package's control file that we use.
type control struct {
	text     []byte // the whole of it, for scanners that look for installed packages
	name     string
	version  string
	arch     string
	replaces []string
}

// readControl asks dpkg-deb for the control file of a .deb.
func (b *Builder) readControl(ctx context.Context, deb string) (control, error) {
	out := newLimited(maxControl)
	if err := b.dpkgDeb(ctx, out, "--field", deb); err != nil {
		return control{}, err
	}
	if out.over {
		return control{}, fmt.Errorf("%w: a control file of more than %d bytes", ErrUnsafe, maxControl)
	}
	return parseControl(out.buf.Bytes())
}

// parseControl reads "Name: value" lines; continued lines begin with a space.
func parseControl(text []byte) (control, error) {
	c := control{text: append(bytes.TrimRight(text, "\n"), '\n')}
	fields := map[string]string{}
	key := ""
	s := bufio.NewScanner(bytes.NewReader(text))
	s.Buffer(nil, maxControl)
	for s.Scan() {
		line := s.Text()
		if line == "" {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if key == "" {
				return control{}, errors.New("control file: continued line without a field")
			}
			fields[key] += "\n" + strings.TrimSpace(line)
			continue
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			return control{}, fmt.Errorf("control file: line %q has no field name", line)
		}
		key = strings.ToLower(k)
		fields[key] = strings.TrimSpace(v)
	}
	if err := s.Err(); err != nil {
		return control{}, fmt.Errorf("control file: %w", err)
	}
	c.name, c.version, c.arch = fields["package"], fields["version"], fields["architecture"]
	if !packageRE.MatchString(c.name) {
		return control{}, fmt.Errorf("control file: %q is not a package name", c.name)
	}
	for _, r := range strings.Split(fields["replaces"], ",") {
		if name, _, _ := strings.Cut(strings.TrimSpace(r), " "); name != "" {
			name, _, _ = strings.Cut(name, ":")
			c.replaces = append(c.replaces, name)
		}
	}
	return c, nil
}

// mergeDeb adds a package's files to t. What dpkg-deb unpacks is only a
// stream to us: nothing touches the file system.
func (b *Builder) mergeDeb(ctx context.Context, t *tree, from source, deb string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := b.dpkgDeb(ctx, w, "--fsys-tarfile", deb)
		w.CloseWithError(err)
		done <- err
	}()
	err := t.addTar(ctx, from, r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // padding; and dpkg-deb's own verdict
	}
	if err != nil {
		cancel(err)
	}
	r.CloseWithError(errors.New("not read on"))
	if ended := <-done; err == nil {
		err = ended
	}
	return err
}

// dpkgDeb runs dpkg-deb. Its words about a broken archive become the error.
func (b *Builder) dpkgDeb(ctx context.Context, stdout io.Writer, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, b.limits().Unpack)
	defer cancel()
	err := run.Command{Path: "dpkg-deb", Args: args, Env: b.env(), Stdout: stdout}.Run(ctx)
	var x *run.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: dpkg-deb: %w", ErrNoApt, err)
	case errors.As(err, &x) && x.Tail != "":
		return fmt.Errorf("%w: %s", err, lastLine(x.Tail))
	}
	return err
}

func lastLine(s string) string {
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// limited keeps at most max bytes and remembers that there were more.
type limited struct {
	buf  bytes.Buffer
	max  int
	over bool
}

func newLimited(max int) *limited { return &limited{max: max} }

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.buf.Len(); len(p) > room {
		l.over = true
		l.buf.Write(p[:room])
		return len(p), nil
	}
	return l.buf.Write(p)
}
