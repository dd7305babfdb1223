package devenv

import (
	"context"
	"errors"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/debian"
	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/deployer/local"
	"github.com/kuroko-faas/kuroko/oss/ossd"
)

// Services are the embedded services of one process, and how to reach them.
type Services struct {
	Dir         string `json:"dir"`
	OSS         string `json:"oss"` // endpoint
	Region      string `json:"region"`
	Bucket      string `json:"bucket"`
	AccessKeyID string `json:"accessKeyId"`
	// AccessKeySecret is the embedded store's own; it opens nothing else.
	AccessKeySecret string `json:"accessKeySecret"`
	Registry        string `json:"registry"`  // host:port
	Target          string `json:"target"`    // control socket
	TargetURL       string `json:"targetUrl"` // where functions answer
	PID             int    `json:"pid"`       // of the process that serves
	Sandbox         string `json:"sandbox"`   // root, userns, none
	WhyNot          string `json:"whyNot"`    // why the sandbox is not a better one
}

// BucketURL is the address that bundles are read from, without credentials.
func (s Services) BucketURL() string { return s.OSS + "/" + s.Bucket }

// blobs is where the registry keeps its blobs.
func (s Services) blobs() string { return filepath.Join(s.Dir, "registry") }

// Server holds the running services. OSSD is exported for tests that inject
// faults.
type Server struct {
	Services
	OSSD *ossd.Server

	stop   context.CancelFunc
	done   chan error
	target *local.Server
}

// Start runs the services in this process until ctx ends or Close is called.
// Data is kept in dir. The process must have called sandbox.Main. sandbox is
// auto, root, userns or none.
func Start(ctx context.Context, dir, sandbox string) (*Server, error) {
	return StartSharing(ctx, dir, sandbox, "")
}

// StartSharing is [Start] for servers that keep the unpacked layers of images
// in one folder, so that those of base images are unpacked once.
func StartSharing(ctx context.Context, dir, sandbox, layers string) (*Server, error) {
	ctx, stop := context.WithCancel(ctx)
	s := &Server{stop: stop, done: make(chan error, 3)}
	s.Services = Services{
		Dir: dir, Region: "cn-local-1", Bucket: "platform", AccessKeyID: "devenv", AccessKeySecret: "devenv-secret", PID: os.Getpid(),
	}
	err := s.start(ctx, sandbox, layers)
	if err != nil {
		stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, sandbox, layers string) error {
	var err error
	if s.OSSD, err = ossd.New(filepath.Join(s.Dir, "oss")); err != nil {
		return err
	}
	s.OSSD.Region = s.Region
	s.OSSD.AddKey(ossd.Key{ID: s.AccessKeyID, Secret: s.AccessKeySecret})
	if err := s.OSSD.CreateBucket(s.Bucket, ossd.PublicRead); err != nil {
		return err
	}
	ossLn, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.OSS = "http://" + ossLn.Addr().String()
	go func() { s.done <- s.OSSD.Serve(ctx, ossLn) }()

	blobs := s.blobs()
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	handler := registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)), registry.Logger(log.New(io.Discard, "", 0)))
	regLn, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Registry = regLn.Addr().String()
	web := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { web.Close() })
	go func() { s.done <- web.Serve(regLn) }()

	s.target, err = local.Start(ctx, local.Options{Dir: filepath.Join(s.Dir, "target"), Layers: layers, Sandbox: sandbox})
	if err != nil {
		return err
	}
	s.Target, s.TargetURL = s.target.Socket(), s.target.URL()
	s.Sandbox, s.WhyNot = s.target.Sandbox()
	return nil
}

// Close ends the services; units are stopped gracefully.
func (s *Server) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := s.target.Close(ctx)
	s.stop()
	for range 2 {
		if e := <-s.done; e != nil && !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, context.Canceled) {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, s.OSSD.Close())
}

// defaultRuntimes are those of the default bundle.
var defaultRuntimes = [...]string{"java17", "nodejs18", "python3.11"}

// PushBaseImages sends the images that `make images` left in its cache to the
// registry, and returns the references a bundle needs for the runtimes, which
// are nodejs18 where none is named. The error of a missing image says how to
// make it.
func (s Services) PushBaseImages(ctx context.Context, cache string, runtimes ...string) (map[string]bundle.Images, error) {
	images := debian.Builder{Cache: cache}
	push := func(image string) (string, error) {
		repo, err := name.NewRepository(s.Registry + "/" + image)
		if err != nil {
			return "", err
		}
		s.link(images, image)
		_, ref, err := images.Push(ctx, image, "", repo, remote.WithContext(ctx))
		if err != nil {
			return "", err
		}
		return image + "@" + ref.DigestStr(), nil
	}
	if len(runtimes) == 0 {
		runtimes = []string{"nodejs18"}
	}
	all := map[string]bundle.Images{}
	for _, runtime := range runtimes {
		base, err := push("base/" + runtime)
		if err != nil {
			return nil, err
		}
		build, err := push("build/" + runtime)
		if err != nil {
			return nil, err
		}
		all[runtime] = bundle.Images{Base: base, Build: build, Layers: map[string]string{}}
		// Built-in layers are few people's need: those that were made are offered.
		for _, layer := range []string{"ffmpeg", "fonts", "tzdata"} {
			image := "layer/" + layer + "/" + runtime
			if made, err := madeFor(images, image, base); err != nil {
				return nil, err
			} else if !made {
				continue
			}
			ref, err := push(image)
			if err != nil {
				return nil, err
			}
			all[runtime].Layers[layer] = ref
		}
	}
	return all, nil
}

// madeFor says whether a built-in layer was made, and for this base: an older
// one stays in the cache when the base is made anew.
func madeFor(images debian.Builder, layer, base string) (bool, error) {
	made, err := images.Find(layer, "")
	if errors.Is(err, debian.ErrNotBuilt) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	img, err := made.Open()
	if err != nil {
		return false, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return false, err
	}
	return strings.HasSuffix(base, "@"+c.Config.Labels[builder.LabelLayerBase]), nil
}

// PushBuilt is [Services.PushBaseImages] for those of the default bundle's
// runtimes whose images were made; none is an error.
func (s Services) PushBuilt(ctx context.Context, cache string) (map[string]bundle.Images, error) {
	all := map[string]bundle.Images{}
	var missing error
	for _, runtime := range defaultRuntimes {
		images, err := s.PushBaseImages(ctx, cache, runtime)
		if errors.Is(err, debian.ErrNotBuilt) {
			missing = err
			continue
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(all, images)
	}
	if len(all) == 0 {
		return nil, missing
	}
	return all, nil
}

// link gives the registry an image's blobs without copying them: a push finds
// them there. What can't be linked, on another disk say, is pushed as ever.
func (s Services) link(images debian.Builder, image string) {
	img, err := images.Find(image, "")
	if err != nil {
		return // the push says why
	}
	dir := filepath.Join(s.blobs(), "sha256")
	if os.MkdirAll(dir, 0o755) != nil {
		return
	}
	files, _ := filepath.Glob(filepath.Join(img.Path, "blobs", "sha256", "*")) // the pattern is sound
	for _, f := range files {
		_ = os.Link(f, filepath.Join(dir, filepath.Base(f)))
	}
}

// ClustersFile is a clusters.yml whose only cluster is these services, for
// the named environments.
func (s Services) ClustersFile(environments ...string) string {
	text := "version: 1\nclusters:\n  here:\n    kind: local\n    endpoint: " + s.Target + "\n    registry: " + s.Registry + "\nenvironments:\n"
	for _, e := range environments {
		text += "  " + e + ": {cluster: here}\n"
	}
	return text
}
