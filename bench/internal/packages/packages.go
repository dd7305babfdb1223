// Package packages makes package registries' content of Debian's packages,
// where no public registry need be asked: wheels of Python packages, and the
// Maven repository that Debian's own builds use.
package packages

import (
	"archive/tar"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder/debian"
)

//go:embed wheels.yml
var wheelsRecipe []byte

//go:embed maven.yml
var mavenRecipe []byte

// Wheels makes wheels in a folder below cache, or finds those that it made of
// the same packages before.
func Wheels(ctx context.Context, b *debian.Builder, cache string) (dir string, err error) {
	return made(ctx, b, wheelsRecipe, cache, "wheels", wheels)
}

// Maven makes a folder with Debian's Maven repository: usr/share/maven-repo,
// whose archives are links to usr/share/java beside it.
func Maven(ctx context.Context, b *debian.Builder, cache string) (dir string, err error) {
	return made(ctx, b, mavenRecipe, cache, "maven", func(files *tar.Reader, dir *os.Root) error {
		return each(files, func(h *tar.Header) error {
			if !strings.HasPrefix(h.Name, "usr/share/maven-repo/") && !strings.HasPrefix(h.Name, "usr/share/java/") {
				return nil
			}
			if err := dir.MkdirAll(path.Dir(h.Name), 0o755); err != nil {
				return err
			}
			switch h.Typeflag {
			case tar.TypeSymlink:
				return dir.Symlink(h.Linkname, h.Name)
			case tar.TypeReg:
				f, err := dir.OpenFile(h.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
				if err != nil {
					return err
				}
				_, err = io.Copy(f, files)
				return errors.Join(err, f.Close())
			}
			return nil
		})
	})
}

// made has fill turn the recipe's packages into a folder whose name says which
// packages it was made of.
func made(ctx context.Context, b *debian.Builder, recipe []byte, cache, kind string, fill func(*tar.Reader, *os.Root) error) (string, error) {
	r, err := debian.ParseRecipe(recipe)
	if err != nil {
		return "", err
	}
	img, err := b.Build(ctx, r, debian.Options{})
	if err != nil {
		if img, ferr := b.Find(r.Name, ""); ferr == nil {
			// Made before, and the package sources do not answer today.
			return content(img, cache, kind, fill)
		}
		return "", err
	}
	return content(img, cache, kind, fill)
}

func content(img debian.Image, cache, kind string, fill func(*tar.Reader, *os.Root) error) (string, error) {
	_, sum, _ := strings.Cut(img.Digest, ":")
	dir := filepath.Join(cache, fmt.Sprintf("%s-%.12s", kind, sum))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, kind+"-new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return "", err
	}
	defer root.Close()
	image, err := img.Open()
	if err == nil {
		err = unpack(image, root, fill)
	}
	if err != nil {
		return "", fmt.Errorf("%s of %s: %w", kind, img.Name, err)
	}
	return dir, os.Rename(tmp, dir)
}

func unpack(image v1.Image, dir *os.Root, fill func(*tar.Reader, *os.Root) error) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			return err
		}
		err = fill(tar.NewReader(r), dir)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// each calls f for the entries of an archive, with clean names.
func each(files *tar.Reader, f func(*tar.Header) error) error {
	for {
		h, err := files.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if !fs.ValidPath(h.Name) || h.Name == "." {
			continue
		}
		if err := f(h); err != nil {
			return err
		}
	}
}
