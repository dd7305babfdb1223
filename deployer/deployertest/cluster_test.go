package deployertest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

func TestCluster(t *testing.T) {
	image := func(hex string) name.Digest {
		d, err := name.NewDigest("registry.example/app@sha256:" + hex + strings.Repeat("0", 64-len(hex)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	missing := deployer.Failure{Code: deployer.ImageMissing, Cause: "no such image", Next: "build it"}
	deployertest.TestTarget(t, func(t *testing.T) deployertest.Env {
		env := deployertest.Env{
			Scope: deployer.Scope{Service: "app", Environment: "test", Namespace: "apps", Owner: "1"},
			One:   image("1"), Two: image("2"), Crash: image("c"), Mute: image("d"), Missing: image("e"),
			Patience: 3 * time.Second,
		}
		env.Target = &deployertest.Cluster{Behave: func(s deployer.Spec) deployertest.Behaviour {
			switch s.Image {
			case env.Crash:
				return deployertest.Behaviour{Failure: &deployer.Failure{Code: deployer.Crash, Cause: "exited with code 3", Next: "read the log", ExitCode: 3, Logs: []string{"boom"}}}
			case env.Mute:
				return deployertest.Behaviour{Delay: s.InitTimeout, Failure: &deployer.Failure{Code: deployer.ProbeNeverPasses, Cause: "never Ready", Next: "answer the probe"}}
			case env.Missing:
				// A registry that lost the image after preflight fails the revision too.
				return deployertest.Behaviour{Failure: &missing, Refuse: &missing}
			}
			return deployertest.Behaviour{}
		}}
		return env
	})
}
