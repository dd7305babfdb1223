// Package directory is the deployer's target for GitOps: a deploy ends as
// manifests in a folder, which something else applies to a cluster.
//
// The objects are the Knative target's own, made by the same code: it talks
// to a small API server over the folder. Records are kept below .kuroko in
// the folder, so that plan, release list and rollback work as everywhere.
// Whether a revision becomes Ready, nobody here can know: a release is
// "unverified", and what needs a live cluster is refused by name.
//
// One deploy at a time uses a folder: it is a job's own checkout, which the
// job commits when the deploy has succeeded.
package directory

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"k8s.io/client-go/rest"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// Config says where the folder is.
type Config struct {
	// Dir holds <namespace>/<kind>-<name>.yaml, and .kuroko; made if need be.
	Dir string
	// Domain ends the units' host names, as the cluster that applies the
	// manifests has it.
	Domain string
	// Namespace is used for scopes without one.
	Namespace string
	// Keychain is what Preflight looks at images with; nil: anonymous.
	Keychain authn.Keychain
}

// Target is a folder. It is safe for concurrent use in one process, and needs
// no closing.
type Target struct {
	deployer.Target // the Knative target over the folder
}

var _ deployer.Target = (*Target)(nil)

// Open returns the folder as a target.
func Open(c Config) (*Target, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, fmt.Errorf("directory: %q is not an absolute path", c.Dir)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	k, err := knative.New(knative.Config{
		REST:      &rest.Config{Host: "http://directory.invalid", Transport: &api{dir: c.Dir, domain: c.Domain}, ContentConfig: rest.ContentConfig{ContentType: "application/json", AcceptContentTypes: "application/json"}},
		Namespace: c.Namespace, Keychain: c.Keychain,
		Times: knative.Times{Poll: 5 * time.Millisecond, Retry: time.Millisecond, Remove: time.Second},
	})
	if err != nil {
		return nil, err
	}
	return &Target{Target: k}, nil
}

// refused is the answer to what needs a live cluster.
func refused(what string) error {
	return &deployer.Failure{
		Code: deployer.Unable, Cause: what + " needs a live cluster; this environment's target is a folder of manifests",
		Next: "use the cluster that the manifests are applied to",
	}
}

// Preflight also refuses units that read secrets or config of the namespace:
// a folder does not know whether they are there, or in which version.
func (t *Target) Preflight(ctx context.Context, scope deployer.Scope, units []deployer.Spec) error {
	for _, u := range units {
		if len(u.Sources()) > 0 {
			return refused("unit " + u.Unit + " reads secrets or config; to know their versions")
		}
	}
	return t.Target.Preflight(ctx, scope, units)
}

// Probe reaches nothing: whoever applies the manifests is not this process.
func (t *Target) Probe(context.Context, deployer.Scope, string, string, string) (deployer.Answer, error) {
	return deployer.Answer{}, fmt.Errorf("directory: nothing runs here: %w", deployer.ErrUnreachable)
}

// Logs is refused.
func (t *Target) Logs(context.Context, deployer.Scope, string, string, int) ([]string, error) {
	return nil, refused("reading logs")
}

// StartRun is refused.
func (t *Target) StartRun(context.Context, deployer.Scope, deployer.Spec, string, []byte) (string, error) {
	return "", refused("starting a job by hand")
}

// FollowRun is refused.
func (t *Target) FollowRun(context.Context, deployer.Scope, string, func(string)) (deployer.RunResult, error) {
	return deployer.RunResult{}, refused("following a job")
}

// Instances is 0: nothing runs here.
func (t *Target) Instances(context.Context, deployer.Scope, string, string) (int, error) {
	return 0, nil
}

// SetFloor does nothing, as its contract says of targets without instances.
func (t *Target) SetFloor(context.Context, deployer.Fence, string, string, int) error { return nil }

// Ask is refused.
func (t *Target) Ask(context.Context, deployer.Scope, string, string, deployer.Request) (deployer.Reply, error) {
	return deployer.Reply{}, refused("asking a revision")
}

// Measure is refused.
func (t *Target) Measure(context.Context, deployer.Scope, string, string) ([]analysis.Counts, error) {
	return nil, refused("measuring a revision")
}
