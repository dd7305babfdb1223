package builder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/registry"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// Options are a layer engine's settings. The zero value works: anonymous,
// without anything kept between processes.
type Options struct {
	// Keychain finds registry credentials; nil is anonymous.
	Keychain authn.Keychain
	// Transport reaches registries and package registries; nil means Go's
	// default, which reads the proxy settings of the environment.
	Transport http.RoundTripper
	// CacheDir keeps what is known about bases, dependency layers and what
	// which repository holds: nothing that can't be found out again. Whoever
	// can write to it can change what later builds contain; share it only
	// among jobs that trust each other. "" keeps nothing.
	CacheDir string
	// NPMCache keeps package archives, checked each time they are used, so it
	// may be shared with anybody. "" keeps nothing.
	NPMCache string
	// PipCache is the same for wheels.
	PipCache string
	// CacheRepo is a repository with an index of dependency layers that
	// several projects share. Without one, each image's own repository serves.
	//
	// A layer from it is used as it is only with a signature by one of
	// CacheKeys. Without one it is made anew from the packages, which are
	// checked against the lock file, and the entry saves no more than the
	// sending: when it differs, it is not used and a warning says so.
	CacheRepo name.Repository
	// CacheWrite allows writing to CacheRepo: for protected refs alone. Entries
	// are signed when there is a Signer.
	CacheWrite bool
	// CacheKeys are whose entries in CacheRepo are believed; nil believes none.
	CacheKeys *attest.Verifier
	// Unprotected tells that anybody may have written what is built: then no
	// index of dependency layers is written to, not even the image's own.
	Unprotected bool
	// TempDir holds layers that are too big for memory; "" is the system's.
	TempDir string
	// Platform of the images; default linux/amd64.
	Platform v1.Platform
	// NPMScopes are other package registries by scope ("@team").
	NPMScopes map[string]string
	// Authorize adds credentials to requests to the package registries and
	// indexes; it is asked for their own hosts alone.
	Authorize func(*http.Request)
	// Secret is a secret of the job by name; [ErrNoSecret] in the chain when it
	// has none. nil has none at all.
	Secret func(name string) (Secret, error)
	// TreeDir keeps unpacked build images, which commands run in; like CacheDir
	// it is for jobs that trust each other. "" unpacks for each command.
	TreeDir string
	// TreeBytes is about how much stays in TreeDir: what was not used for
	// longest goes first. 0 means [DefaultTreeBytes].
	TreeBytes int64
	// Mode of the sandbox that commands run in; "" is the best there is.
	Mode sandbox.Mode
	// NoOverlay has each command run over a copy of its build image that is made
	// for it, as on a machine that has no overlay.
	NoOverlay bool
	// Env is what commands see of the machine's environment: proxies, and
	// SSL_CERT_FILE, SSL_CERT_DIR and NODE_EXTRA_CA_CERTS with what they name; in
	// the job container also PATH and LANG. nil means PATH alone.
	Env []string
	// Tools are package managers that build images lack; nil means [Tools].
	Tools map[string]Tool
	// Install runs a package manager's command for lock files that need one;
	// nil means [Layers.Run].
	Install func(ctx context.Context, c Command) (Ran, error)
	// Signer signs what lies beside an image; nil leaves it unsigned. With a
	// signer, a registry that does not take the documents is an error.
	Signer *attest.Signer
	// Progress is told about transfers; nil is silence. It is called from
	// several goroutines.
	Progress func(Transfer)
	// Attempts and Delay are those of [registry.Options].
	Attempts int
	Delay    time.Duration
	// Trust is how long a repository is believed to hold a blob that was seen
	// there; below the registry's garbage collection. Default 24 h.
	Trust time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Layers is the layer engine: base by digest, the request's trees,
// dependencies from a lock file, code. It needs no rights on the machine
// except where a package has to run its own install script.
//
// It is safe for concurrent use, and images built by one engine share what
// they have in common.
type Layers struct {
	o    Options
	reg  *registry.Client
	npm  *http.Client
	memo *memo
}

var _ Engine = (*Layers)(nil)

// NewLayers makes an engine. It sends nothing.
func NewLayers(o Options) (*Layers, error) {
	if o.Platform.OS == "" {
		o.Platform = v1.Platform{OS: "linux", Architecture: "amd64"}
	}
	if o.Trust <= 0 {
		o.Trust = 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Tools == nil {
		o.Tools = Tools()
	}
	if o.Env == nil {
		o.Env = []string{"PATH=" + os.Getenv("PATH")}
	}
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 16
		t.DisableCompression = true
		o.Transport = t
	}
	for _, dir := range []string{o.CacheDir, o.NPMCache, o.PipCache} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("builder: make the cache folder: %w", err)
		}
	}
	e := &Layers{
		o: o,
		reg: registry.New(registry.Options{Keychain: o.Keychain, Transport: o.Transport, Attempts: o.Attempts, Delay: o.Delay,
			Now: o.Now, UserAgent: "kuroko"}),
		npm:  &http.Client{Transport: o.Transport},
		memo: newMemo(o.CacheDir, o.Trust, o.Now),
	}
	if o.Install == nil {
		e.o.Install = e.Run
	}
	return e, nil
}

// Find looks for the image of an input key: one request. A Build of the same
// key by the same engine then does not look again.
func (e *Layers) Find(ctx context.Context, repo name.Repository, key string) (name.Digest, bool, error) {
	return e.find(ctx, e.reg.Session(), repo, key)
}

func (e *Layers) find(ctx context.Context, s *registry.Session, repo name.Repository, key string) (name.Digest, bool, error) {
	tag := keyTag(repo, "k-", key)
	d, err := s.Head(ctx, tag, true)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		e.memo.looked(tag)
		return name.Digest{}, false, nil
	case err != nil:
		return name.Digest{}, false, explain("look for the image in "+repo.Name(), err)
	}
	e.memo.appeared(tag)
	return repo.Digest(d.Digest.String()), true, nil
}

// FindMade looks for the image that a command of the repository led to, by the
// key of everything that the command reads and of what the image has besides:
// one request.
func (e *Layers) FindMade(ctx context.Context, repo name.Repository, key string) (name.Digest, bool, error) {
	d, err := e.reg.Session().Head(ctx, keyTag(repo, "c-", key), true)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return name.Digest{}, false, nil
	case err != nil:
		return name.Digest{}, false, explain("look for the image in "+repo.Name(), err)
	}
	return repo.Digest(d.Digest.String()), true, nil
}

// MarkMade lets [Layers.FindMade] find an image, which has been pushed and
// tagged by its own key.
func (e *Layers) MarkMade(ctx context.Context, image name.Digest, key string) error {
	if err := e.reg.Session().Tag(ctx, image, keyTag(image.Context(), "c-", key)); err != nil {
		return explain("tag the image in "+image.Context().Name(), err)
	}
	return nil
}

// Build implements [Engine].
func (e *Layers) Build(ctx context.Context, req Request) (Image, error) {
	if err := req.check(); err != nil {
		return Image{}, err
	}
	s := e.reg.Session()
	image, err := e.build(ctx, s, req)
	e.memo.flush() // what a build that failed has seen
	image.Name, image.Key, image.Engine = req.Name, req.Key, "layer"
	image.Requests, image.Uploaded = s.Requests(), s.Sent()
	if err != nil {
		if ctx.Err() != nil {
			return image, context.Cause(ctx)
		}
		return image, explain("push "+req.Repository.Name(), err)
	}
	return image, nil
}

func (r *Request) check() error {
	switch {
	case r.Dockerfile != nil:
		return errors.New("builder: a Dockerfile is not for the layer engine")
	case r.Key == "":
		return errors.New("builder: the request has no key")
	case r.Repository.RepositoryStr() == "":
		return errors.New("builder: the request has no repository")
	case r.Base.DigestStr() == "":
		return errors.New("builder: the request has no base by digest")
	case r.Dependencies != nil && !slices.Contains([]string{KindNPM, KindPNPM, KindYarn, KindPip}, r.Dependencies.Kind):
		return fmt.Errorf("builder: dependencies of kind %q", r.Dependencies.Kind)
	}
	return nil
}

func (e *Layers) build(ctx context.Context, s *registry.Session, req Request) (Image, error) {
	tag := keyTag(req.Repository, "k-", req.Key)
	var kept []Layer
	seen := e.memo.load("built", tag.Name(), &kept)
	// A machine that has pushed here before and does not know the key takes
	// it for a change, and saves the question. If another machine was faster,
	// the same image comes out.
	if !e.memo.wasAbsent(tag) && (seen || !e.memo.load("pushed", req.Repository.Name(), new(bool))) {
		ref, ok, err := e.find(ctx, s, req.Repository, req.Key)
		if err != nil {
			return Image{}, err
		}
		if ok {
			for i := range kept {
				kept[i].Reused, kept[i].Took = true, 0
			}
			return Image{Ref: ref, Reused: true, Layers: kept}, nil
		}
	}
	image, err := e.assemble(ctx, s, req, tag, false)
	if errors.Is(err, registry.ErrBlobUnknown) {
		// The registry has dropped what we believed it held.
		image, err = e.assemble(ctx, s, req, tag, true)
	}
	if err != nil {
		return Image{}, err
	}
	e.memo.appeared(tag)
	return image, nil
}
