package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Secret is a value that commands may use and nothing may keep: it is in no
// key, layer, document or log.
type Secret struct {
	Value []byte
	// File says that the job has it as a file: its variable holds a path.
	File bool
}

// SecretDir has the secrets of a command as files, where it runs in a sandbox.
const SecretDir = "/run/secrets"

// ErrNoSecret is in the chain of the error for a secret that the job lacks.
var ErrNoSecret = errors.New("there is no such secret")

// secrets are those of the names.
func (e *Layers) secrets(names []string) (map[string]Secret, error) {
	all := map[string]Secret{}
	for _, n := range names {
		if e.o.Secret == nil {
			return nil, fmt.Errorf("builder: secret %s: %w", n, ErrNoSecret)
		}
		s, err := e.o.Secret(n)
		if err != nil {
			return nil, fmt.Errorf("builder: secret %s: %w", n, err)
		}
		all[n] = s
	}
	return all, nil
}

// secretsInside are a command's secrets in a sandbox: files that are in memory
// alone, and as the job has them, variables with the value or the file's path.
func (e *Layers) secretsInside(names []string, uid, gid int) (env []string, binds []sandbox.Bind, err error) {
	all, err := e.secrets(names)
	for n, s := range all {
		p := path.Join(SecretDir, n)
		binds = append(binds, sandbox.Bind{Target: p, File: &sandbox.File{Data: s.Value, Mode: 0o400, UID: uid, GID: gid}})
		if !s.File {
			p = string(s.Value)
		}
		env = append(env, n+"="+p)
	}
	return env, binds, err
}

// secretsHere are a command's secrets in the job container: variables, and
// those that are files in a folder of the command's home, which is closed to
// other users and removed with the command.
func (e *Layers) secretsHere(names []string, home string) (env []string, err error) {
	all, err := e.secrets(names)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	dir := filepath.Join(home, "secrets")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	for n, s := range all {
		v := string(s.Value)
		if s.File {
			v = filepath.Join(dir, n)
			if err := os.WriteFile(v, s.Value, 0o400); err != nil {
				return nil, fmt.Errorf("builder: %w", err)
			}
		}
		env = append(env, n+"="+v)
	}
	return env, nil
}

// Reveals looks for the secrets of some names in files; paths nil means all of
// fsys. It returns the first file that holds one, and the secret's name; empty
// for none.
func (e *Layers) Reveals(ctx context.Context, fsys fs.FS, paths, names []string) (file, name string, err error) {
	all, err := e.secrets(names)
	if err != nil || len(all) == 0 {
		return "", "", err
	}
	var values []string
	for _, n := range names {
		values = append(values, string(all[n].Value))
	}
	if paths == nil {
		err = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				paths = append(paths, p)
			}
			return err
		})
		if err != nil {
			return "", "", err
		}
	}
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return "", "", context.Cause(ctx)
		}
		if st, err := fs.Lstat(fsys, p); err != nil || !st.Mode().IsRegular() {
			continue // a link has no content, and what is gone is told by whom it is missing
		}
		f, err := fsys.Open(p)
		if err != nil {
			return "", "", err
		}
		i, err := redact.Find(f, values)
		f.Close()
		if err != nil {
			return "", "", err
		}
		if i >= 0 {
			return p, names[i], nil
		}
	}
	return "", "", nil
}

// Revealed is the error for a file of an image that holds a secret.
func Revealed(what, file, secret string) error {
	return &InputError{What: what, Next: "have the command use " + secret + " without writing it down; if others may have seen it, rotate it",
		Err: fmt.Errorf("%s holds the value of the secret %s, and everybody who may pull the image could read it", file, secret)}
}
