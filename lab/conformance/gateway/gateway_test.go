//go:build conformance

// Package gateway runs Gateway API's own conformance suite against the lab's
// ingress: its core and the extended features the GatewayClass says it has.
package gateway

import (
	"bytes"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

func TestGatewayConformance(t *testing.T) {
	echo := os.Getenv("KUROKO_LAB_ECHO")
	if echo == "" {
		t.Skip("needs the lab: make lab-conformance")
	}
	o := conformance.DefaultOptions(t)
	o.GatewayClassName = "lab"
	o.ConformanceProfiles.Insert(suite.GatewayHTTPConformanceProfileName)
	o.SupportedFeatures = suite.FeaturesSet{}
	for _, f := range extended {
		o.SupportedFeatures.Insert(features.FeatureName(f))
	}
	o.ManifestFS = []fs.FS{withEcho(t, echo)}
	o.CleanupBaseResources = true
	s, err := suite.NewConformanceTestSuite(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Setup(t, tests.ConformanceTests)
	if err := s.Run(t, tests.ConformanceTests); err != nil {
		t.Fatal(err)
	}
}

// extended are the features beyond the core which are tested.
var extended = []string{"GatewayHTTPListenerIsolation", "HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket",
	"HTTPRouteBackendRequestHeaderModification", "HTTPRouteHostRewrite", "HTTPRouteMethodMatching", "HTTPRouteParentRefPort",
	"HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect", "HTTPRouteQueryParamMatching",
	"HTTPRouteResponseHeaderModification", "HTTPRouteSchemeRedirect"}

var echoImage = regexp.MustCompile(`image: \S+/echo-basic:\S+`)

// withEcho is the suite's manifests with the echo server the lab built, and
// without the objects of tests that need another image (a DNS server, for UDP).
func withEcho(t *testing.T, image string) fs.FS {
	t.Helper()
	out := fstest.MapFS{}
	err := fs.WalkDir(&conformance.Manifests, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(&conformance.Manifests, path)
		if err != nil {
			return err
		}
		b = echoImage.ReplaceAllLiteral(b, []byte("image: "+image))
		if strings.HasPrefix(path, "base/") {
			var docs [][]byte
			for _, doc := range bytes.Split(b, []byte("\n---\n")) {
				if !bytes.Contains(doc, []byte("registry.k8s.io/")) {
					docs = append(docs, doc)
				}
			}
			b = bytes.Join(docs, []byte("\n---\n"))
		}
		out[path] = &fstest.MapFile{Data: b, Mode: 0o444}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
