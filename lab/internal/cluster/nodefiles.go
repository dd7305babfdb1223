package cluster

import (
	"embed"
	"errors"
	"os"
	"path/filepath"
	"strings"
)

//go:embed files
var files embed.FS

// render fills the @NAME@ places of an embedded file.
func (c Config) render(name string, more ...string) (string, error) {
	b, err := files.ReadFile("files/" + name)
	if err != nil {
		return "", err
	}
	pairs := append([]string{"@STATE@", c.State, "@NODE@", c.Node, "@REGISTRY@", c.Registry(), "@POD_CIDR@", podCIDR,
		"@CGROUP@", "/" + c.cgroup(), "@DEB@", c.Parts["node"], "@DOMAIN@", Domain}, more...)
	return strings.NewReplacer(pairs...).Replace(string(b)), nil
}

// nodeFiles writes the configurations of containerd, CNI, kubelet, kube-proxy
// and CoreDNS.
func (c Config) nodeFiles() error {
	host := c.path("run", "certs.d", c.Registry())
	if err := errors.Join(os.MkdirAll(c.path("run", "cni"), 0o755), os.MkdirAll(host, 0o755)); err != nil {
		return err
	}
	for name, to := range map[string]string{
		"containerd.toml": c.path("run", "containerd.toml"), "kubelet.yaml": c.path("run", "kubelet.yaml"),
		"kube-proxy.yaml": c.path("run", "kube-proxy.yaml"), "Corefile": c.path("run", "Corefile"),
		"cni.conflist": c.path("run", "cni", "10-lab.conflist"), "hosts.toml": filepath.Join(host, "hosts.toml"),
	} {
		text, err := c.render(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
