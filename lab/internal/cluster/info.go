package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Info is what tests and programs need to use a lab: the file lab.json in its
// state folder, and the variables of [Info.Env].
type Info struct {
	ID         string            `json:"id"`
	Tier       Tier              `json:"tier"`
	State      string            `json:"state_dir"`
	Kubeconfig string            `json:"kubeconfig"`
	API        string            `json:"api"`      // https://host:port
	Registry   string            `json:"registry"` // host:port, plain http
	Ingress    string            `json:"ingress"`  // host:port, plain http; empty without Knative
	Domain     string            `json:"domain"`   // routes are NAME.NAMESPACE.<domain>
	Host       string            `json:"host"`     // where pods reach the machine
	Logs       string            `json:"logs"`
	Bin        map[string]string `json:"bin"` // programs by name: kubectl, hello
}

func (c Config) info() Info {
	i := Info{ID: c.ID, Tier: c.Tier, State: c.State, Kubeconfig: c.Kubeconfig(), API: "https://" + c.Node + ":6443", Registry: c.Registry(),
		Domain: Domain, Host: c.Host, Logs: c.path("log"), Bin: c.partsBin()}
	if c.Tier == TierKnative {
		i.Ingress = c.Node + ":80"
	}
	return i
}

func (i Info) write() error {
	if err := writeJSON(filepath.Join(i.State, "lab.json"), i); err != nil {
		return err
	}
	return writeFile(filepath.Join(i.State, "lab.env"), []byte("export "+strings.Join(i.Env(), "\nexport ")+"\n"), 0o644)
}

// ReadInfo reads lab.json of the lab whose state is in dir.
func ReadInfo(dir string) (Info, error) {
	var i Info
	b, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		return i, err
	}
	return i, json.Unmarshal(b, &i)
}

// Env are the variables that tell a program about the lab. Values hold no
// character a shell would change.
func (i Info) Env() []string {
	return []string{"KUROKO_LAB=" + filepath.Join(i.State, "lab.json"), "KUROKO_LAB_TIER=" + string(i.Tier), "KUBECONFIG=" + i.Kubeconfig,
		"KUROKO_LAB_REGISTRY=" + i.Registry, "KUROKO_LAB_INGRESS=" + i.Ingress, "KUROKO_LAB_DOMAIN=" + i.Domain,
		"KUROKO_LAB_HOST=" + i.Host, "KUROKO_LAB_KUBECTL=" + i.Bin["kubectl"]}
}

// Status is what runs.
type Status struct {
	State      string            `json:"state"` // down, starting, up, broken
	Info       *Info             `json:"lab,omitempty"`
	Components []ComponentStatus `json:"components,omitempty"`
	Died       []Dead            `json:"died,omitempty"`
	Processes  int               `json:"processes"`
	RSS        int64             `json:"rss_bytes"` // of all its processes together; shared pages count each time
}

// ComponentStatus is a component as the machine sees it.
type ComponentStatus struct {
	Name   string `json:"name"`
	PID    int    `json:"pid"` // of the machine; 0 once it ended
	RSS    int64  `json:"rss_bytes"`
	Log    string `json:"log"`
	Exited string `json:"exited,omitempty"`
}

// Dead is a component that ended, with the end of its log.
type Dead struct {
	Name   string `json:"name"`
	Exited string `json:"exited"`
	Log    string `json:"log"`
	LogEnd string `json:"log_end"`
}

func (d Dead) String() string { return fmt.Sprintf("%s %s; the end of %s:", d.Name, d.Exited, d.Log) }

// StatusOf says what runs of the lab whose state is in dir.
func StatusOf(dir string) (Status, error) {
	c, err := Load(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Status{State: "down"}, nil
	}
	if err != nil {
		return Status{}, err
	}
	return c.Status(), nil
}

// Status says what runs.
func (c Config) Status() Status {
	list, _ := c.components() // none before the first has started
	pid, alive := c.initPID()
	procs := c.Processes()
	st := Status{State: "starting", Processes: len(procs)}
	inner := map[int]proc{}
	for _, p := range procs {
		st.RSS += p.RSS
		if p.Parent == pid {
			inner[p.Inner] = p
		}
	}
	for _, k := range list {
		s := ComponentStatus{Name: k.Name, Log: k.Log, Exited: k.Exited}
		if p, ok := inner[k.PID]; ok && alive && k.Exited == "" {
			s.PID, s.RSS = p.PID, p.RSS
		} else if k.Exited == "" && alive {
			s.Exited = "is gone"
		}
		if s.Exited != "" {
			st.Died = append(st.Died, Dead{k.Name, s.Exited, k.Log, logEnd(k.Log, logLines)})
		}
		st.Components = append(st.Components, s)
	}
	info, err := ReadInfo(c.State)
	switch {
	case !alive:
		if _, err := os.Stat(c.path("run", "init")); err != nil && len(procs) == 0 {
			return Status{State: "down"}
		}
		st.State = "broken"
		log := c.path("log", "init.log")
		st.Died = append(st.Died, Dead{"the lab's own process", "ended", log, logEnd(log, logLines)})
	case len(st.Died) > 0:
		st.State = "broken"
	case err == nil:
		st.State, st.Info = "up", &info
	}
	return st
}
