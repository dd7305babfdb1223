package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Component is one process of the lab, as written to components.json.
type Component struct {
	Name   string `json:"name"`
	PID    int    `json:"pid"` // in the lab's pid namespace
	Log    string `json:"log"`
	Exited string `json:"exited,omitempty"` // how, once it has
}

// supervisor starts and reaps processes as pid 1 of a pid namespace. It does
// all waiting itself, since orphans of containers become its children: nothing
// in this process may use os/exec while it runs.
type supervisor struct {
	dir    string // components.json and died are written here
	logs   string
	env    []string
	mu     sync.Mutex
	procs  map[int]*process
	list   []*Component
	onDied func(Component, string) // name and log's end
}

type process struct {
	component *Component // nil for one that is expected to end
	status    syscall.WaitStatus
	done      chan struct{}
}

func newSupervisor(dir, logs string, env []string) *supervisor {
	s := &supervisor{dir: dir, logs: logs, env: env, procs: map[int]*process{}}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	go func() {
		for range c {
			s.reap()
		}
	}()
	return s
}

// start runs a component whose end is a failure of the lab.
func (s *supervisor) start(name string, argv []string, env ...string) error {
	log := filepath.Join(s.logs, name+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &Component{Name: name, Log: log}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.fork(c, argv, append(s.env, env...), []uintptr{devNull(), f.Fd(), f.Fd()}); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	s.list = append(s.list, c)
	return s.write()
}

// run runs a program to its end with this process' standard files and returns
// its exit code, 128+n for signal n.
func (s *supervisor) run(argv, env []string) (int, error) {
	s.mu.Lock()
	p, err := s.fork(nil, argv, env, []uintptr{0, 1, 2})
	s.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", argv[0], err)
	}
	<-p.done
	if p.status.Signaled() {
		return 128 + int(p.status.Signal()), nil
	}
	return p.status.ExitStatus(), nil
}

// output runs a program to its end and returns what it wrote to both streams.
func (s *supervisor) output(stdin string, argv []string, env ...string) (string, error) {
	in, err := os.CreateTemp(s.dir, ".in-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(in.Name())
	defer in.Close()
	out, err := os.CreateTemp(s.dir, ".out-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	if _, err := in.WriteString(stdin); err != nil {
		return "", err
	}
	if _, err := in.Seek(0, 0); err != nil {
		return "", err
	}
	s.mu.Lock()
	p, err := s.fork(nil, argv, append(s.env, env...), []uintptr{in.Fd(), out.Fd(), out.Fd()})
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	<-p.done
	b, err := os.ReadFile(out.Name())
	if err == nil && p.status != 0 {
		err = fmt.Errorf("%s: %s", filepath.Base(argv[0]), describe(p.status))
	}
	return string(b), err
}

// fork starts a process; the caller holds mu, so it can't be reaped before it
// is known.
func (s *supervisor) fork(c *Component, argv, env []string, files []uintptr) (*process, error) {
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: env, Files: files})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	p := &process{component: c, done: make(chan struct{})}
	if c != nil {
		c.PID = pid
	}
	s.procs[pid] = p
	return p, nil
}

func (s *supervisor) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		p := s.procs[pid]
		if p == nil || !(st.Exited() || st.Signaled()) {
			continue
		}
		delete(s.procs, pid)
		p.status = st
		close(p.done)
		if p.component != nil {
			p.component.Exited = describe(st)
			s.died(p.component)
		}
	}
}

// died writes what happened where up, status and people look for it.
func (s *supervisor) died(c *Component) {
	end := logEnd(c.Log, logLines)
	text := fmt.Sprintf("%s %s at %s (pid %d in the lab)\nthe end of %s:\n%s\n",
		c.Name, c.Exited, time.Now().UTC().Format(time.RFC3339), c.PID, c.Log, indent(end))
	fmt.Fprint(os.Stderr, text)
	if f, err := os.OpenFile(filepath.Join(s.dir, "died"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Close()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if err := s.write(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if s.onDied != nil {
		s.onDied(*c, end)
	}
}

// dead returns the components that have ended.
func (s *supervisor) dead() []Component {
	s.mu.Lock()
	defer s.mu.Unlock()
	var d []Component
	for _, c := range s.list {
		if c.Exited != "" {
			d = append(d, *c)
		}
	}
	return d
}

func (s *supervisor) write() error {
	b, err := json.MarshalIndent(s.list, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(s.dir, "components.json"), b, 0o644)
}

// wait polls until ok, a component's death, or the end of the time.
func (s *supervisor) wait(what string, limit time.Duration, ok func() error) error {
	end := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if d := s.dead(); len(d) > 0 {
			return fmt.Errorf("waiting for %s: %s %s", what, d[0].Name, d[0].Exited)
		}
		if time.Now().After(end) {
			return fmt.Errorf("no %s after %s: %w", what, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func describe(st syscall.WaitStatus) string {
	if st.Signaled() {
		return "was killed by " + unix.SignalName(st.Signal())
	}
	return fmt.Sprintf("exited with status %d", st.ExitStatus())
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") }

// logLines of a dead component's log are shown.
const logLines = 10

// logEnd returns the last n lines of a file, of its last 16 KiB, long lines cut.
func logEnd(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const most = 16 << 10
	if fi, err := f.Stat(); err == nil && fi.Size() > most {
		if _, err := f.Seek(-most, 2); err != nil {
			return err.Error()
		}
	}
	b := make([]byte, most)
	m := 0
	for m < most {
		k, err := f.Read(b[m:])
		m += k
		if err != nil {
			break
		}
	}
	lines := strings.Split(strings.TrimRight(string(b[:m]), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for i, l := range lines {
		if len(l) > 400 {
			lines[i] = l[:400] + "…"
		}
	}
	if len(lines) == 1 && lines[0] == "" {
		return "(empty)"
	}
	return strings.Join(lines, "\n")
}

var nullFile = sync.OnceValues(func() (*os.File, error) { return os.Open(os.DevNull) })

// devNull is a descriptor of /dev/null that stays open; standard input without it.
func devNull() uintptr {
	f, err := nullFile()
	if err != nil {
		return 0
	}
	return f.Fd()
}
