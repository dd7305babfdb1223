package sandbox

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// sentinel is the program name by which [Main] knows that it is inside.
const sentinel = "kuroko-sandbox"

// Descriptors of the first process inside.
const (
	specFD   = 3
	statusFD = 4
	extraFD  = 5 // the first of Spec.ExtraFiles
)

// Steps that explain tells apart.
const (
	opNamespaces = "make namespaces"
	opProc       = "mount /proc"
	opOverlay    = "mount overlay"
	opPivot      = "change the root"
	opExec       = "start"
)

// order travels to the first process inside, over a pipe and never in a file.
type order struct {
	Nonce                           string
	Mode                            Mode
	Lower                           []string
	Root, Upper, Work               string
	TmpfsBytes                      int64
	Binds                           []Bind
	Argv, Env                       []string
	Dir                             string
	UID, GID                        int
	Hostname                        string
	KeepCapabilities, AsInit, Probe bool
	Changes                         bool
	Extra                           int

	views []int // descriptors of the changes and of what is below them
}

// message is one line on the status pipe.
type message struct {
	Failure *failure `json:",omitempty"`
	Exec    bool     `json:",omitempty"` // the next thing is exec
	Started bool     `json:",omitempty"`
	Exit    *exit    `json:",omitempty"`
}

type failure struct {
	Op, Path string
	Errno    syscall.Errno
	Text     string
	Rights   bool // a step that only a missing right denies
}

type exit struct{ Code, Signal int }

// stepError is a failed step inside, before it is sent.
type stepError struct {
	op, path string
	rights   bool
	err      error
}

func (e *stepError) Error() string { return e.op + " " + e.path + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// Main is the first line of every main, and of every TestMain, whose process
// may call [Start] or [Detect]. It returns at once, except in the copy of the
// program that Start runs inside a new sandbox: there it never returns.
func Main() {
	if len(os.Args) == 2 && os.Args[0] == sentinel {
		setUp(os.Args[1])
	}
}

// setUp makes the root, drops the rights and becomes the command or its init.
func setUp(nonce string) {
	// Rights belong to threads: the command is started from this one.
	runtime.LockOSThread()
	var o order
	spec := os.NewFile(specFD, "order")
	status := os.NewFile(statusFD, "status")
	if os.Getpid() != 1 {
		quit("not the first process of a sandbox")
	}
	if err := gob.NewDecoder(spec).Decode(&o); err != nil {
		quit("read the order: " + err.Error())
	}
	if o.Nonce != nonce || nonce == "" {
		quit("the order is not for this process")
	}
	out := json.NewEncoder(status)
	err := o.enter(spec, out)
	runtime.KeepAlive(status)
	runtime.KeepAlive(spec)
	f := failure{Op: "set up", Text: err.Error(), Errno: errnoOf(err)}
	var s *stepError
	if errors.As(err, &s) {
		f.Op, f.Path, f.Rights, f.Text = s.op, s.path, s.rights, s.err.Error()
	}
	_ = out.Encode(message{Failure: &f})
	os.Exit(125)
}

// quit ends a process that was started by hand or by mistake.
func quit(why string) {
	fmt.Fprintln(os.Stderr, "sandbox: "+why)
	os.Exit(125)
}

// enter returns only when it failed.
func (o *order) enter(spec *os.File, out *json.Encoder) error {
	unix.Umask(0o022)
	if err := o.makeRoot(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(o.Hostname)); err != nil {
		return &stepError{op: "set the host name", rights: true, err: err}
	}
	if o.Probe {
		_ = out.Encode(message{Started: true})
		os.Exit(0)
	}
	if err := dropRights(o); err != nil {
		return err
	}
	if err := unix.Chdir(o.Dir); err != nil {
		return &stepError{op: "enter the working folder", path: o.Dir, err: err}
	}
	// Changing ids cleared the parent's-death signal. Had the parent ended
	// before this line, its end of the pipe would be closed.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return &stepError{op: "follow the parent's end", err: err}
	}
	poll := []unix.PollFd{{Fd: int32(spec.Fd())}}
	if n, _ := unix.Poll(poll, 0); n > 0 && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		return errors.New("the parent is gone")
	}
	if err := closeOnExec(3); err != nil {
		return &stepError{op: "close descriptors", err: err}
	}
	if o.AsInit {
		path, err := lookPath(o.Argv[0], o.Env)
		if err != nil {
			return &stepError{op: opExec, path: o.Argv[0], err: err}
		}
		// The status pipe makes room for the command's own descriptors: exec
		// closes the copy.
		fd, err := unix.FcntlInt(statusFD, unix.F_DUPFD_CLOEXEC, extraFD+o.Extra)
		if err != nil {
			return &stepError{op: "hand on descriptors", err: err}
		}
		*out = *json.NewEncoder(os.NewFile(uintptr(fd), "status"))
		for i := range o.Extra {
			if err := unix.Dup3(extraFD+i, 3+i, 0); err != nil {
				return &stepError{op: "hand on descriptors", err: err}
			}
		}
		for i, fd := range o.views {
			if err := unix.Dup3(fd, 3+o.Extra+i, 0); err != nil {
				return &stepError{op: "hand on descriptors", err: err}
			}
		}
		_ = out.Encode(message{Exec: true})
		return &stepError{op: opExec, path: o.Argv[0], err: syscall.Exec(path, o.Argv, o.Env)}
	}
	return o.supervise(out)
}

// supervise is process 1 when the command isn't: it starts the command, hands
// signals on to it, reaps what it left behind, and tells how it ended. It
// returns only when the command can't be started.
func (o *order) supervise(out *json.Encoder) error {
	// Whoever runs inside with our ids must still not get at our memory, our
	// descriptors or our program.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return &stepError{op: "hide the init", err: err}
	}
	signals := make(chan os.Signal, 32)
	signal.Notify(signals)
	path, err := lookPath(o.Argv[0], o.Env)
	if err != nil {
		return &stepError{op: opExec, path: o.Argv[0], err: err}
	}
	files := []uintptr{0, 1, 2}
	for i := range o.Extra {
		files = append(files, uintptr(extraFD+i))
	}
	pid, err := syscall.ForkExec(path, o.Argv, &syscall.ProcAttr{Env: o.Env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return &stepError{op: opExec, path: o.Argv[0], err: err}
	}
	_ = out.Encode(message{Started: true})
	// Our copies of the command's own descriptors would keep pipes open.
	for _, fd := range files {
		_ = unix.Close(int(fd))
	}
	go func() {
		for s := range signals {
			switch s {
			case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE:
			default:
				_ = unix.Kill(pid, s.(syscall.Signal))
			}
		}
	}()
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			os.Exit(125)
		case got == pid && (ws.Exited() || ws.Signaled()):
			e := &exit{Code: ws.ExitStatus()}
			if ws.Signaled() {
				e.Code, e.Signal = 128+int(ws.Signal()), int(ws.Signal())
			}
			_ = out.Encode(message{Exit: e})
			os.Exit(e.Code) // and the kernel ends all the others
		}
	}
}

// lookPath finds name in env's PATH, as execvp would.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	found := error(syscall.ENOENT)
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		p := dir + "/" + name
		st, err := os.Stat(p)
		if err != nil || st.IsDir() {
			continue
		}
		if unix.Access(p, unix.X_OK) == nil {
			return p, nil
		}
		found = syscall.EACCES
	}
	return "", found
}

// closeOnExec marks every descriptor from first on.
func closeOnExec(first int) error {
	if unix.CloseRange(uint(first), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	// Linux before 5.11.
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range list {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
