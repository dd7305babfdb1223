package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/lab/internal/cluster"
	"github.com/kuroko-faas/kuroko/lab/internal/image"
	"github.com/kuroko-faas/kuroko/lab/internal/tagged"
)

// conformance runs public suites against the lab's ingress, from their modules,
// with the images they need built from the same modules.
func (p program) conformance(ctx context.Context, args []string) (int, error) {
	var runExpr string
	var keep bool
	rest, err := p.flags("conformance", args, func(f *flag.FlagSet) {
		f.StringVar(&runExpr, "run", "", "")
		f.BoolVar(&keep, "keep", false, "")
	})
	if err != nil {
		return 0, err
	}
	if len(rest) == 0 {
		rest = []string{"knative", "gateway"}
	}
	suites := map[string]func(context.Context, cluster.Info, string) (tagged.Test, error){"knative": p.knativeSuite, "gateway": p.gatewaySuite}
	for _, s := range rest {
		if suites[s] == nil {
			return 0, fmt.Errorf("%w: no suite %q", errUsage, s)
		}
	}
	if err := cluster.Possible(); err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "kuroko-lab-conformance-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	return p.inLab(ctx, keep, func() (int, error) {
		info, err := p.running()
		if err != nil {
			return 0, err
		}
		worst := 0
		for _, s := range rest {
			t, err := suites[s](ctx, info, tmp)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", s, err)
			}
			code, err := p.execute(ctx, "conformance "+s, tagged.Plan{Root: p.o.Checkout, Tests: []tagged.Test{t}, Run: runExpr, Timeout: 30 * time.Minute})
			if err != nil {
				return 0, err
			}
			worst = max(worst, code)
		}
		return worst, nil
	})
}

// compile builds a program or, with "test -c", a test binary in dir.
func (p program) compile(ctx context.Context, dir, out, pkg string, args ...string) error {
	p.o.Log("compiling %s", pkg)
	cmd := exec.CommandContext(ctx, "go", append(args, "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	cmd.Stdout, cmd.Stderr = p.stderr, p.stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s %s: %w", args[0], pkg, err)
	}
	return nil
}

// knativeSuite is Knative's own ingress conformance suite: its stable and beta
// tests. TLS is left out, as the lab's ingress has none for Knative's routes.
func (p program) knativeSuite(ctx context.Context, info cluster.Info, tmp string) (tagged.Test, error) {
	dir := filepath.Join(p.o.Lab, "conformance")
	t := tagged.Test{Name: "Knative's ingress conformance suite", Dir: dir, Binary: filepath.Join(tmp, "knative.test"), Names: under("TestIngressConformance", knativeTests())}
	if err := p.compile(ctx, dir, t.Binary, ".", "test", "-c", "-tags", "e2e"); err != nil {
		return t, err
	}
	for _, i := range []string{"grpc-ping", "httpproxy", "retry", "runtime", "timeout", "wsserver"} {
		bin := filepath.Join(tmp, i)
		if err := p.compile(ctx, dir, bin, "knative.dev/networking/test/test_images/"+i, "build"); err != nil {
			return t, err
		}
		if _, err := image.Push(ctx, info.Registry+"/conformance/"+i+":latest", image.Spec{Files: []image.File{{Source: bin, Path: "/ko-app/" + i}}}); err != nil {
			return t, err
		}
	}
	// It exists already where a suite ran before.
	_ = exec.CommandContext(ctx, info.Bin["kubectl"], "--kubeconfig", info.Kubeconfig, "create", "namespace", "serving-tests").Run()
	t.Args = []string{"-test.parallel=4", "-kubeconfig", info.Kubeconfig, "-ingressClass", "kingress.ingress.networking.knative.dev",
		"-dockerrepo", info.Registry + "/conformance", "-enable-beta", "-skip-tests", "tls"}
	return t, nil
}

// gatewaySuite is Gateway API's conformance suite: its core tests of
// GatewayHTTPRoute, and those of the extended features the ingress has.
func (p program) gatewaySuite(ctx context.Context, info cluster.Info, tmp string) (tagged.Test, error) {
	dir := filepath.Join(p.o.Lab, "conformance", "gateway")
	t := tagged.Test{Name: "Gateway API's conformance suite", Dir: dir, Binary: filepath.Join(tmp, "gateway.test"), Names: under("TestGatewayConformance", gatewayTests())}
	if err := p.compile(ctx, dir, t.Binary, ".", "test", "-c", "-tags", "conformance"); err != nil {
		return t, err
	}
	bin := filepath.Join(tmp, "echo-basic")
	if err := p.compile(ctx, dir, bin, "sigs.k8s.io/gateway-api/conformance/echo-basic", "build"); err != nil {
		return t, err
	}
	ref, err := image.Push(ctx, info.Registry+"/conformance/echo-basic:latest", image.Spec{Files: []image.File{{Source: bin, Path: "/echo-basic"}}})
	if err != nil {
		return t, err
	}
	return t, os.Setenv("KUROKO_LAB_ECHO", ref)
}

// under are the full names of subtests of a Go test.
func under(test string, names string) []string {
	var out []string
	for _, n := range strings.Fields(names) {
		out = append(out, test+"/"+n)
	}
	return out
}

// knativeTests are the stable and beta tests but tls.
func knativeTests() string {
	return `basics basics/http2 grpc grpc/split headers/pre-split headers/post-split headers/probe hosts/multiple
		dispatch/path dispatch/percentage dispatch/path_and_percentage dispatch/rule retry timeout update
		visibility visibility/split visibility/path ingressclass websocket websocket/split host-rewrite headers/tags`
}

// gatewayTests are the core tests of the suite's profile for HTTPRoutes of
// Gateways, then those of the extended features the ingress has.
func gatewayTests() string {
	return `GatewayClassObservedGenerationBump GatewayInvalidRouteKind GatewayInvalidTLSConfiguration GatewayModifyListeners
		GatewayObservedGenerationBump GatewaySecretInvalidReferenceGrant GatewaySecretMissingReferenceGrant
		GatewaySecretReferenceGrantAllInNamespace GatewaySecretReferenceGrantSpecific GatewayWithAttachedRoutes
		HTTPRouteCrossNamespace HTTPRouteExactPathMatching HTTPRouteHeaderMatching HTTPRouteHostnameIntersection HTTPRouteHTTPSListener
		HTTPRouteInvalidBackendRefUnknownKind HTTPRouteInvalidCrossNamespaceBackendRef HTTPRouteInvalidCrossNamespaceParentRef
		HTTPRouteInvalidNonExistentBackendRef HTTPRouteInvalidParentRefNotMatchingSectionName HTTPRouteInvalidReferenceGrant
		HTTPRouteListenerHostnameMatching HTTPRouteMatchingAcrossRoutes HTTPRouteMatching HTTPRouteObservedGenerationBump
		HTTPRoutePartiallyInvalidViaInvalidReferenceGrant HTTPRoutePathMatchOrder HTTPRouteRedirectHostAndStatus HTTPRouteReferenceGrant
		HTTPRouteRequestHeaderModifier HTTPRouteServiceTypes HTTPRouteSimpleSameNamespace HTTPRouteWeight

		GatewayHTTPListenerIsolation HTTPRouteBackendProtocolH2C HTTPRouteBackendProtocolWebSocket
		HTTPRouteBackendRequestHeaderModifier HTTPRouteRequestHeaderModifierBackendWeights HTTPRouteInvalidParentRefSectionNameNotMatchingPort
		HTTPRouteListenerPortMatching HTTPRouteMethodMatching HTTPRouteQueryParamMatching HTTPRouteRedirectPath HTTPRouteRedirectPort
		HTTPRouteRedirectScheme HTTPRouteResponseHeaderModifier HTTPRouteRewriteHost HTTPRouteRewritePath`
}
