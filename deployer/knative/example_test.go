package knative_test

import (
	"context"
	"fmt"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// A cluster whose ingress is known by address; DNS knows its names later.
func ExampleNew() {
	target, err := knative.New(knative.Config{Kubeconfig: "/etc/kuroko/kubeconfig", IngressAddress: "10.0.0.8:80"})
	if err != nil {
		fmt.Println(err)
		return
	}
	scope := deployer.Scope{Service: "shop", Environment: "prod", Namespace: "team-shop", Owner: "42"}
	head, err := target.Head(context.Background(), scope)
	fmt.Println(head.Live, err)
}
