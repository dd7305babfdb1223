// Command layer is a small program over the layer engine: an application's
// folder in, an image out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/bench/internal/program"
	"github.com/kuroko-faas/kuroko/builder"
)

func main() { program.Main("layer", options) }

// settings are what is particular to this engine.
type settings struct {
	base, entry   string
	npm, pip, abi string
	command       string
	output        string
}

func options(flags *flag.FlagSet) program.Build {
	var s settings
	flags.StringVar(&s.base, "base", "", "base image by digest")
	flags.StringVar(&s.entry, "entry", "", "the command, as a JSON list")
	flags.StringVar(&s.npm, "npm", "", "address of npm's registry, where package-lock.json decides the dependencies")
	flags.StringVar(&s.pip, "pip", "", "address of Python's index, where requirements.txt decides the dependencies")
	flags.StringVar(&s.abi, "abi", "", "the base's ABI, for Python")
	flags.StringVar(&s.command, "command", "", "what runs in the folder first, as build.command does in a pipeline")
	flags.StringVar(&s.output, "output", "", "folder of what the command made: classes/ is the code, dependency/ a layer of its own")
	return s.build
}

func (s *settings) build(ctx context.Context, j program.Job) (builder.Image, error) {
	e, err := builder.NewLayers(builder.Options{CacheDir: filepath.Join(j.State, "layers")})
	if err != nil {
		return builder.Image{}, err
	}
	if s.command == "" {
		return s.pack(ctx, e, j)
	}
	// As in a pipeline, the command need not run when an image was made of just
	// what it would read.
	key, err := s.reads(ctx, j)
	if err != nil {
		return builder.Image{}, err
	}
	ref, ok, err := e.FindMade(ctx, j.Repository, key)
	if err != nil || ok {
		return builder.Image{Ref: ref, Reused: true}, err
	}
	cmd := exec.CommandContext(ctx, "sh", "-ec", s.command)
	cmd.Dir, cmd.Stdout, cmd.Stderr = j.Dir, os.Stderr, os.Stderr
	cmd.Env = append(os.Environ(), "MAVEN_OPTS=-XX:TieredStopAtLevel=1") // as in stages/maven.go
	if err := cmd.Run(); err != nil {
		return builder.Image{}, fmt.Errorf("%s: %w", s.command, err)
	}
	img, err := s.pack(ctx, e, j)
	if err != nil {
		return img, err
	}
	return img, e.MarkMade(ctx, img.Ref, key)
}

func (s *settings) pack(ctx context.Context, e *builder.Layers, j program.Job) (builder.Image, error) {
	req, err := s.request(ctx, j)
	if err != nil {
		return builder.Image{}, err
	}
	return e.Build(ctx, req)
}

// reads is the key of what the command reads and of what the image has besides:
// every file but the command's output and Maven's own cache.
func (s *settings) reads(ctx context.Context, j program.Job) (string, error) {
	t := builder.Tree{Title: "what the command reads", FS: j.Root.FS(), Prefix: "/app"}
	err := fs.WalkDir(t.FS, ".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (p == s.output || p == ".m2"):
			return fs.SkipDir
		case !d.IsDir():
			t.Paths = append(t.Paths, p)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	sum, err := builder.DigestOf(ctx, t)
	return builder.Key(builder.Layout, s.base, s.entry, s.command, s.output, sum), err
}

// request is what a plan would make of the folder. The key is made of the
// files' content, as a plan's is.
func (s *settings) request(ctx context.Context, j program.Job) (req builder.Request, err error) {
	const dir = "/app"
	tree := j.Root.FS()
	req = builder.Request{Name: "bench", Repository: j.Repository, Config: builder.Config{WorkingDir: dir},
		Code: builder.Tree{Title: "code", FS: tree, Prefix: dir}}
	if req.Base, err = name.NewDigest(s.base); err != nil {
		return req, err
	}
	if err := json.Unmarshal([]byte(s.entry), &req.Config.Entrypoint); err != nil {
		return req, fmt.Errorf("--entry: %w", err)
	}
	switch {
	case s.npm != "":
		req.Dependencies = &builder.Dependencies{Kind: builder.KindNPM, FS: tree, Manifest: "package.json", Lock: "package-lock.json", Prefix: dir, Registry: s.npm}
	case s.pip != "":
		req.Dependencies = &builder.Dependencies{Kind: builder.KindPip, FS: tree, Lock: "requirements.txt", Prefix: "/usr/local", ABI: s.abi, Registry: s.pip}
	case s.output != "":
		classes, libraries := path.Join(s.output, "classes"), path.Join(s.output, "dependency")
		req.Config.Env = []string{"CLASSPATH=" + path.Join(dir, classes) + ":" + path.Join(dir, libraries) + "/*"}
		jars := builder.Tree{Title: "dependencies", FS: tree, Prefix: dir}
		if req.Code.Paths, err = files(tree, classes); err != nil {
			return req, err
		}
		if jars.Paths, err = files(tree, libraries); err != nil {
			return req, err
		}
		req.Layers = []builder.Tree{jars}
	}
	parts := []string{builder.Layout, req.Base.DigestStr()}
	for _, t := range append(req.Layers, req.Code) {
		sum, err := builder.DigestOf(ctx, t)
		if err != nil {
			return req, err
		}
		parts = append(parts, sum)
	}
	req.Key = builder.Key(parts...)
	return req, nil
}

func files(tree fs.FS, dir string) (list []string, err error) {
	err = fs.WalkDir(tree, dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			list = append(list, p)
		}
		return err
	})
	if err == nil && len(list) == 0 {
		err = errors.New(dir + " is empty")
	}
	return list, err
}
