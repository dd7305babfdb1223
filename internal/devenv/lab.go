package devenv

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// Lab is the running one-machine Kubernetes with Knative (docs/lab.md), as
// `lab status --json` describes it.
type Lab struct {
	Kubeconfig string `json:"kubeconfig"`
	Registry   string `json:"registry"` // host:port, plain HTTP
	Ingress    string `json:"ingress"`  // host:port
	Domain     string `json:"domain"`
	// Namespace is where functions go; empty: default.
	Namespace string `json:"-"`
}

// ErrNoLab says that no lab is up.
var ErrNoLab = errors.New("the lab is not up")

// FindLab asks the lab program in bin. [ErrNoLab] when it is not up, or not
// built.
func FindLab(ctx context.Context, bin string) (Lab, error) {
	program := filepath.Join(bin, "lab")
	if _, err := os.Stat(program); err != nil {
		return Lab{}, ErrNoLab
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	err := run.Command{Path: program, Args: []string{"status", "--json"}, Env: os.Environ(), Stdout: &out}.Run(ctx)
	var status struct {
		State string `json:"state"`
		Lab   *Lab   `json:"lab"`
	}
	if jerr := json.Unmarshal(out.Bytes(), &status); jerr != nil {
		return Lab{}, fmt.Errorf("lab status: %w", errors.Join(err, jerr))
	}
	if status.State != "up" || status.Lab == nil || status.Lab.Ingress == "" {
		return Lab{}, fmt.Errorf("%w: it is %s", ErrNoLab, status.State)
	}
	return *status.Lab, nil
}

// ClustersFile is a clusters.yml whose only cluster is the lab.
func (l Lab) ClustersFile(environments ...string) string {
	text := fmt.Sprintf("version: 1\nclusters:\n  lab:\n    kind: knative\n    domain: %s\n    ingress: %s\n    registry: %s\n    namespace: %s\nenvironments:\n",
		l.Domain, l.Ingress, l.Registry, cmp.Or(l.Namespace, "default"))
	for _, e := range environments {
		text += "  " + e + ": {cluster: lab}\n"
	}
	return text
}

// Client reaches units by their names through the lab's ingress, without DNS.
func (l Lab) Client() *http.Client {
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, l.Ingress)
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial}}
}
