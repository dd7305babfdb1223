package local_test

import (
	"context"
	"fmt"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/local"
)

func Example() {
	// main has called sandbox.Main first.
	ctx := context.Background()
	server, err := local.Start(ctx, local.Options{Dir: "/var/lib/kuroko"})
	if err != nil {
		panic(err)
	}
	defer server.Close(ctx)

	// In this process or another:
	target := local.Dial(server.Socket())
	state, err := deployer.Observe(ctx, target, deployer.Scope{Service: "shop", Environment: "prod", Owner: "42"})
	fmt.Println(state.Head.Live, err)
}
