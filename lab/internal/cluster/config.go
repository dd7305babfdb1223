// Package cluster runs the lab: Kubernetes' own components, containerd and
// Knative Serving as plain processes in namespaces of their own.
//
// One process (see [Init]) is pid 1 of the lab's pid, mount, network, uts and
// ipc namespaces and the parent of everything in it, so the lab ends when that
// process does. The machine sees one veth link, one cgroup per hierarchy and
// the state folder, all named after the checkout.
package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kuroko-faas/kuroko/lab/internal/parts"
)

// ErrUnavailable is in the chain of errors that say the lab can't run on this
// machine; the program exits 77 on it.
var ErrUnavailable = parts.ErrUnavailable

// A Tier says how much of the lab runs.
type Tier string

const (
	TierAPI     Tier = "api"     // API server, Knative's webhook and controller; no pods, no root
	TierPods    Tier = "pods"    // Kubernetes with real pods
	TierKnative Tier = "knative" // and Knative Serving with an ingress
)

// Names and addresses inside the lab's own network namespace.
const (
	Domain       = "lab.example"
	nodeName     = "lab"
	podCIDR      = "10.244.0.0/24"
	serviceCIDR  = "10.96.0.0/16"
	apiService   = "10.96.0.1"
	ingressClass = "kingress.ingress.networking.knative.dev"
)

// Config is everything the processes of one lab must agree on. It is a file in
// the state folder.
type Config struct {
	ID       string      `json:"id"`       // see ID
	Checkout string      `json:"checkout"` // for people
	State    string      `json:"state"`    // folder of this lab
	Cache    string      `json:"cache"`    // folder of the parts
	Tier     Tier        `json:"tier"`
	Host     string      `json:"host"` // the machine's address on the link
	Node     string      `json:"node"` // the lab's address: API server, registry, DNS, ingress
	Link     string      `json:"link"` // the machine's side of the veth pair
	Parts    parts.Paths `json:"parts"`
}

// ID names a lab after its state folder, which is one per checkout.
func ID(state string) string {
	sum := sha256.Sum256([]byte(state))
	return hex.EncodeToString(sum[:4])
}

// The last bytes of the addresses Gateways get, all in the lab's network.
const poolFirst, poolLast = 16, 79

// pool is an address of the lab's network by its last byte.
func (c Config) pool(last int) string {
	return c.Node[:strings.LastIndexByte(c.Node, '.')+1] + strconv.Itoa(last)
}

// Registry is host:port of the lab's registry. The address is private, so
// go-containerregistry speaks plain http to it.
func (c Config) Registry() string { return c.Node + ":5000" }

// Kubeconfig is the path of the administrator's kubeconfig.
func (c Config) Kubeconfig() string { return c.path("pki", "admin.kubeconfig") }

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.State}, elem...)...)
}

func (c Config) cgroup() string { return "kuroko-lab-" + c.ID }

func (c Config) bin(part, name string) string { return filepath.Join(c.Parts[part], name) }

// env is the environment of the lab's own processes: nothing is inherited.
func (c Config) env() []string {
	deb := c.Parts["node"]
	path := c.Parts["kube"]
	env := []string{"HOME=" + c.path("var"), markVariable + "=" + c.ID}
	if deb != "" {
		path += ":" + deb + "/usr/sbin:" + deb + "/usr/bin:" + deb + "/sbin:" + deb + "/bin"
		libs := ""
		for _, g := range []string{"/usr/lib/*-linux-gnu*", "/lib/*-linux-gnu*"} {
			dirs, _ := filepath.Glob(deb + g) // the pattern is constant
			for _, d := range dirs {
				libs += ":" + d
				if xt := filepath.Join(d, "xtables"); isDir(xt) {
					env = append(env, "XTABLES_LIBDIR="+xt)
				}
			}
		}
		if libs != "" {
			env = append(env, "LD_LIBRARY_PATH="+libs[1:])
		}
	}
	return append(env, "PATH="+path+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

// markVariable marks the lab's processes in their environment, so that down
// finds those that lost their parent.
const markVariable = "KUROKO_LAB_ID"

// Load reads the configuration of the lab whose state is in dir. The error is
// fs.ErrNotExist when there is none.
func Load(dir string) (Config, error) {
	var c Config
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w", filepath.Join(dir, "config.json"), err)
	}
	if c.State != dir || c.ID == "" {
		return c, fmt.Errorf("%s: not of this folder", filepath.Join(dir, "config.json"))
	}
	return c, nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'), 0o644)
}

// writeFile replaces path in one step.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}
