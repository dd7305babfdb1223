package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
)

// Where things stand in a function image. The adapters know these places.
const (
	adapterDir = "/opt/faas/adapter"
	codeDir    = "/app"
	nonroot    = "65532:65532"
)

// launchers start a language's adapter.
var launchers = map[string][]string{
	"node": {"/usr/bin/node", adapterDir + "/main.js"},
}

// request translates a planned image into what the builder takes. It carries
// no label, tag or text that differs between equal builds.
func (s *state) request(ctx context.Context, p *project.Project, plan *BuildPlan, img PlannedImage) (builder.Request, error) {
	bad := func(err error) (builder.Request, error) {
		return builder.Request{}, &usererr.Error{Code: usererr.CodeBundleContent, Err: fmt.Errorf("bundle.yml: runtimes.%s: %w", img.Runtime, err)}
	}
	site, err := s.site(ctx)
	if err != nil {
		return builder.Request{}, err
	}
	rt, ok := s.Bundle.Meta.Runtimes[img.Runtime]
	if !ok && img.Runtime != "" {
		return bad(fmt.Errorf("is not in this bundle"))
	}
	repo, err := name.NewRepository(plan.Repository + "/" + img.Name)
	if err != nil {
		return builder.Request{}, err
	}
	var base name.Digest
	if ok { // a Dockerfile without a runtime names its own base
		if base, err = name.NewDigest(site.Cluster.Image(rt.Base)); err != nil {
			return bad(err)
		}
	}
	var made *name.Digest
	if img.Base != "" {
		runtimes := base
		made = &runtimes
		if base, err = name.NewDigest(site.Cluster.Image(img.Base)); err != nil {
			return builder.Request{}, &builder.InputError{What: "read build.base", Next: "name an image by digest", Err: err}
		}
	}
	if s.tree == nil {
		if s.tree, err = os.OpenRoot(s.Job.Dir); err != nil {
			return builder.Request{}, err
		}
	}
	builtIn := make([]name.Digest, 0, len(img.Layers))
	for _, l := range img.Layers {
		d, err := name.NewDigest(site.Cluster.Image(rt.Layers[builtInName(l)]))
		if err != nil {
			return bad(fmt.Errorf("layers.%s: %w", builtInName(l), err))
		}
		builtIn = append(builtIn, d)
	}
	req := builder.Request{
		BuiltIn: builtIn, For: made,
		Name: img.Name, Key: img.Key, Repository: repo, Base: base,
		Code:   builder.Tree{Title: "code", FS: s.tree.FS(), Prefix: codeDir, Paths: plan.Files(img)},
		Origin: s.origin(plan, img), Secrets: buildOf(p, img).Secrets,
	}
	if img.App != "" {
		if req.Config, err = s.appConfig(p, img, rt.Language); err != nil {
			return builder.Request{}, err
		}
	} else {
		launcher, ok := launchers[rt.Language]
		if !ok || rt.Adapter == "" {
			return bad(fmt.Errorf("language %q has no adapter in this bundle", rt.Language))
		}
		adapter, err := fs.Sub(s.Bundle.FS, rt.Adapter)
		if err != nil {
			return bad(err)
		}
		req.Layers = []builder.Tree{{Title: "adapter", FS: adapter, Prefix: adapterDir}}
		req.Config = builder.Config{WorkingDir: codeDir, Entrypoint: launcher, User: nonroot, Env: []string{"NODE_ENV=production"}}
	}
	req.Config.Labels = s.ociLabels(img)
	if img.Engine == EngineDockerfile {
		req.Dockerfile = &builder.Dockerfile{FS: s.tree.FS(), Path: img.Dockerfile, Args: buildArgs(p, img, site.Cluster, rt)}
		if req.Dockerfile.Cache, err = s.instructionCache(plan); err != nil {
			return builder.Request{}, err
		}
		req.Dockerfile.Env = s.mirrorVariables()
		return req, nil // its own instructions install what it needs
	}
	build, err := s.buildImage(ctx, img.Runtime)
	if err != nil {
		return builder.Request{}, err
	}
	switch {
	case rt.Language == "python" && img.Lock == "":
		return req, otherLock(s.tree)
	case rt.Language == "python":
		index, err := s.mirror(ctx, "pip", s.World.PipIndex)
		if err != nil {
			return builder.Request{}, err
		}
		req.Dependencies = &builder.Dependencies{
			Kind: builder.KindPip, FS: s.tree.FS(), Lock: img.Lock, Prefix: "/usr/local", ABI: rt.ABI, Registry: index, Build: build,
		}
		return req, nil
	case rt.Language == "java":
		splitJava(p.Build.Output, &req)
		return req, nil
	case rt.Language != "node":
		return req, nil
	}
	if img.Lock != "" {
		registry, err := s.mirror(ctx, "npm", s.World.NPMRegistry)
		if err != nil {
			return builder.Request{}, err
		}
		req.Dependencies = &builder.Dependencies{
			Kind: kinds[img.Lock], FS: s.tree.FS(), Manifest: manifests["node"], Lock: img.Lock,
			Prefix: codeDir, Registry: registry, Build: build,
		}
		return req, nil
	}
	n, err := dependencyCount(s.tree)
	if err == nil && n > 0 {
		err = &builder.InputError{
			What: fmt.Sprintf("package.json lists %d dependencies, but there is no tracked lock file", n),
			Next: "run npm install --package-lock-only and commit package-lock.json; pnpm-lock.yaml and yarn.lock count as well",
		}
	}
	return req, err
}

// splitJava puts the libraries that the build command left beside its classes
// (mvn dependency:copy-dependencies does) into a layer of their own, below the
// code: they are most of the image and change rarely. A jar directly in the
// output folder is the program itself. The class path has the classes first.
func splitJava(output string, req *builder.Request) {
	if output == "" {
		return
	}
	jars := builder.Tree{Title: "dependencies", FS: req.Code.FS, Prefix: codeDir}
	classes := []string{path.Join(codeDir, output)}
	var code, libraries []string
	add := func(list []string, dir string) []string {
		if slices.Contains(list, dir) {
			return list
		}
		return append(list, dir)
	}
	for _, f := range req.Code.Paths {
		if path.Ext(f) == ".jar" && within(f, output) && path.Dir(f) != path.Clean(output) {
			jars.Paths = append(jars.Paths, f)
			libraries = add(libraries, path.Join(codeDir, path.Dir(f))+"/*")
			continue
		}
		if maven := path.Join(output, "classes"); within(f, maven) {
			classes = add(classes, path.Join(codeDir, maven))
		}
		code = append(code, f)
	}
	req.Config.Env = append(req.Config.Env, "CLASSPATH="+strings.Join(append(classes, libraries...), ":"))
	if len(jars.Paths) > 0 {
		req.Layers, req.Code.Paths = append(req.Layers, jars), code
	}
}

// foreignLocks are Python's other lock files, and what makes a
// requirements.txt of them.
var foreignLocks = []struct{ file, command string }{
	{"uv.lock", "uv export --format requirements-txt -o requirements.txt"},
	{"poetry.lock", "poetry export -o requirements.txt"},
	{"Pipfile.lock", "pipenv requirements --hash > requirements.txt"},
	{"pdm.lock", "pdm export -o requirements.txt"},
}

// otherLock refuses a lock file that would be passed over.
func otherLock(tree *os.Root) error {
	for _, l := range foreignLocks {
		if _, err := tree.Stat(l.file); err == nil {
			return &builder.InputError{
				What: "there is a " + l.file + " and no tracked requirements.txt",
				Next: "run " + l.command + " and commit requirements.txt (" + l.file + " itself is planned)",
			}
		}
	}
	return nil
}

// appConfig is how the image of a server starts. A Dockerfile says that itself.
func (s *state) appConfig(p *project.Project, img PlannedImage, language string) (builder.Config, error) {
	if img.Engine == EngineDockerfile {
		return builder.Config{}, nil
	}
	c := builder.Config{WorkingDir: codeDir, User: nonroot, Env: slices.Clone(programs[language].env)}
	for _, f := range p.Functions {
		if f.Name == img.App {
			argv, err := startCommand(f, s.tree.FS())
			if err != nil {
				return builder.Config{}, &builder.InputError{What: "start function " + f.Name, Next: "correct functions." + f.Name + ".handler", Err: err}
			}
			c.Entrypoint = argv
		}
	}
	return c, nil
}

// dependencyCount is how many packages package.json needs at run time.
func dependencyCount(tree *os.Root) (int, error) {
	data, err := tree.ReadFile(manifests["node"])
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var m struct {
		Dependencies map[string]string `json:"dependencies"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return 0, &builder.InputError{What: "package.json is not JSON", Next: "correct package.json", Err: err}
	}
	return len(m.Dependencies), nil
}
