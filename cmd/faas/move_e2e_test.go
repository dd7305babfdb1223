//go:build e2e

package main

import (
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
)

// On Knative, through its ingress: functions move between all three modes, and
// none of them is without an answer.
func TestMoveUnderLoadInTheCluster(t *testing.T) {
	c := devtest.NewCluster(t)
	l := labOf(t, c.Start(t), nil)
	l.environ = append(l.environ, "KUBECONFIG="+c.Kubeconfig)
	client := c.Client()
	client.Timeout = 20 * time.Second
	tree := newTree()
	tree.settings["cpu"] = "100m"        // the node has room for the units of both modes
	tree.settings["initTimeout"] = "60s" // and may be busy
	moveUnderLoad(l, client, tree, func(unit string) string { return "http://shop-" + unit + "." + c.Namespace + "." + c.Domain })
}
