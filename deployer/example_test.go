package deployer_test

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/deployertest"
)

func ExampleDeploy() {
	ctx := context.Background()
	target := &deployertest.Cluster{} // local.Dial(socket) on a machine
	image, err := name.NewDigest("registry.example/shop@sha256:0e1a3f0f0c4f9d35a0e1a3f0f0c4f9d35a0e1a3f0f0c4f9d35a0e1a3f0f0c4f9")
	if err != nil {
		panic(err)
	}
	plan := deployer.Plan{
		Scope:    deployer.Scope{Service: "shop", Environment: "prod", Namespace: "shop-prod", Owner: "42"},
		Pipeline: 7,
		Units:    []deployer.Spec{{Name: "shop-main", Unit: "main", Image: image, Table: `{"name":"main"}`}},
	}
	for range 2 {
		out, err := deployer.Deploy(ctx, target, plan, deployer.Options{})
		if err != nil {
			panic(err)
		}
		fmt.Println(out.ID, "live, changed:", !out.NoChange, "verified:", out.Verified)
	}
	// Output:
	// r1 live, changed: true verified: true
	// r1 live, changed: false verified: true
}
