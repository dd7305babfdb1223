package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/GoogleContainerTools/kaniko/pkg/commands"
	"github.com/GoogleContainerTools/kaniko/pkg/dockerfile"
	"github.com/GoogleContainerTools/kaniko/pkg/util"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// child is process 1 of the sandbox: it carries out instructions over / and
// leaves the new layers in kaniko.Out. Its result is the exit code.
func child(stderr io.Writer) int {
	o, err := kaniko.ReadOrder()
	if err != nil {
		fmt.Fprintln(stderr, "kaniko-executor: "+err.Error())
		return 70
	}
	s := stage{order: o, log: stderr}
	outcome := s.build()
	if err := kaniko.WriteOutcome(outcome); err != nil {
		fmt.Fprintln(stderr, "kaniko-executor: "+err.Error())
		return 70
	}
	if outcome.Failure != "" {
		return 1
	}
	return 0
}

// stage carries out the instructions of a stage. kaniko does the single
// instruction and finds what it changed. Its loop around them is not used: it
// empties the root between stages, keeps ARGs from stage to stage, and asks
// registries.
type stage struct {
	order  kaniko.Order
	log    io.Writer
	config v1.Config
	args   *dockerfile.BuildArgs
	files  *snapshots
	place  int  // of the current instruction
	cmdSet bool // CMD stands in the current FROM
	title  string
	line   int
	layers []int
}

func (s *stage) build() (outcome kaniko.Outcome) {
	defer func() {
		if r := recover(); r != nil {
			outcome = kaniko.Outcome{Failure: fmt.Sprintf("kaniko panicked: %v", r), Command: s.title, Line: s.line}
		}
	}()
	err := s.prepare()
	if err == nil {
		err = s.carryOut()
	}
	if err == nil {
		outcome.Layers = s.layers
		outcome.Config, err = json.Marshal(s.config)
	}
	if err == nil {
		return outcome
	}
	outcome = kaniko.Outcome{Failure: err.Error(), Command: s.title, Line: s.line}
	var exited *exec.ExitError
	if errors.As(err, &exited) {
		outcome.Code = exited.ExitCode()
		if ws, ok := exited.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			outcome.Code = 128 + int(ws.Signal())
		}
	}
	return outcome
}

// plainLog writes what kaniko has to say as lines like all others.
type plainLog struct{}

func (plainLog) Format(e *logrus.Entry) ([]byte, error) {
	return []byte(strings.ToLower(e.Level.String()) + ": " + strings.TrimSpace(e.Message) + "\n"), nil
}

func (s *stage) prepare() error {
	// Its steps are told here; only what went wrong is worth a line.
	logrus.SetLevel(logrus.WarnLevel)
	logrus.SetFormatter(plainLog{})
	logrus.SetOutput(s.log)
	// A RUN inherits whatever isn't marked.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		logrus.Debugf("close_range: %v", err)
	}
	if err := json.Unmarshal(s.order.Config, &s.config); err != nil {
		return err
	}
	if s.config.Env == nil {
		s.config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	var given []string
	for k, v := range s.order.Args {
		given = append(given, k+"="+v)
	}
	s.args = dockerfile.NewBuildArgs(given)
	for k, v := range s.order.Meta {
		s.args.AddMetaArg(k, &v)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	var err error
	s.files, err = newSnapshots()
	return err
}

// carryOut walks the stage's instructions, after those of the stages that it
// stands on.
func (s *stage) carryOut() error {
	tree, err := parser.Parse(bytes.NewReader(s.order.Dockerfile))
	if err != nil {
		return err
	}
	all, _, err := instructions.Parse(tree.AST, nil)
	if err != nil {
		return err
	}
	total := 0
	for _, i := range s.order.Chain {
		if i < 0 || i >= len(all) {
			return fmt.Errorf("there is no stage %d", i)
		}
		total += len(all[i].Commands)
	}
	for _, i := range s.order.Chain {
		s.cmdSet = false
		for _, cmd := range all[i].Commands {
			if s.place == s.order.Until {
				s.title, s.line = "", 0
				return nil
			}
			s.title, s.line = fmt.Sprint(cmd), 0
			if l := cmd.Location(); len(l) > 0 {
				s.line = l[0].Start.Line
			}
			if s.place >= s.order.Skip {
				fmt.Fprintf(s.log, "[%s %d/%d] %s\n", s.order.Name, s.place+1, total, kaniko.FirstLine(s.title))
			}
			changed, err := s.step(cmd)
			if err != nil {
				return err
			}
			if changed {
				s.layers = append(s.layers, s.place)
			}
			s.place++
		}
	}
	s.title, s.line = "", 0
	return nil
}

// step carries out one instruction and says whether it made a layer.
func (s *stage) step(cmd instructions.Command) (bool, error) {
	known := s.place < s.order.Skip
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		if known {
			return false, nil
		}
		return s.copy(c.SourcesAndDest, copyFlags{chown: c.Chown, chmod: c.Chmod, link: c.Link, from: c.From})
	case *instructions.AddCommand:
		if known {
			return false, nil
		}
		return s.copy(c.SourcesAndDest, copyFlags{chown: c.Chown, chmod: c.Chmod, link: c.Link, unpack: true})
	case *instructions.RunCommand:
		if known {
			return false, nil
		}
		return s.run(c)
	case *instructions.VolumeCommand:
		// kaniko would leave out of the image what is put there later.
		return false, s.volumes(c)
	case *instructions.EntrypointCommand:
		if !s.cmdSet {
			s.config.Cmd = nil
		}
	case *instructions.CmdCommand:
		s.cmdSet = true
	case *instructions.WorkdirCommand:
		if err := s.mayMake(c.Path); err != nil {
			return false, err
		}
	}
	k, err := commands.GetCommand(cmd, util.FileContext{Root: kaniko.InsideContext}, false, false, false)
	if err != nil || k == nil {
		return false, err
	}
	if err := k.ExecuteCommand(&s.config, s.args); err != nil {
		return false, err
	}
	if known || k.MetadataOnly() {
		return false, nil
	}
	return s.files.take(k.FilesToSnapshot(), s.place)
}

func (s *stage) env() []string { return s.args.ReplacementEnvs(s.config.Env) }

// expand replaces variables; unknown ones are empty.
func (s *stage) expand(word string) (string, error) {
	out, _, err := shell.NewLex(parser.DefaultEscapeToken).ProcessWord(word, shell.EnvsFromSlice(s.env()))
	return out, err
}

// user is whom commands run as; "" is root.
func (s *stage) user() (string, error) {
	u, err := s.expand(s.config.User)
	name, _, _ := strings.Cut(u, ":")
	if name == "0" || name == "root" {
		name = ""
	}
	return name, err
}

// mayMake refuses a WORKDIR that could not be made as it should be.
func (s *stage) mayMake(word string) error {
	dir, err := s.expand(word)
	if err != nil {
		return err
	}
	if l := kaniko.Lost(dir); l != "" {
		return fmt.Errorf("what is put into %s never reaches the image", l)
	}
	u, err := s.user()
	if err != nil || u == "" || !s.order.Rootless {
		return err
	}
	if !strings.HasPrefix(dir, "/") {
		dir = s.config.WorkingDir + "/" + dir
	}
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return fmt.Errorf("the folder would belong to USER %s, and without root on this machine only root's files can be made; put USER after it", u)
}

func (s *stage) volumes(c *instructions.VolumeCommand) error {
	for _, v := range c.Volumes {
		p, err := s.expand(v)
		if err != nil {
			return err
		}
		if s.config.Volumes == nil {
			s.config.Volumes = map[string]struct{}{}
		}
		s.config.Volumes[p] = struct{}{}
	}
	return nil
}

// run runs a command and takes a snapshot of everything.
func (s *stage) run(c *instructions.RunCommand) (bool, error) {
	u, err := s.user()
	if err != nil {
		return false, err
	}
	if u != "" && s.order.Rootless {
		return false, fmt.Errorf("RUN as USER %s is not possible without root on this machine; put USER after the last RUN", u)
	}
	if err := hereDocuments(c); err != nil {
		return false, err
	}
	if err := s.files.begin(); err != nil {
		return false, err
	}
	k, err := commands.GetCommand(c, util.FileContext{Root: kaniko.InsideContext}, false, false, false)
	if err != nil {
		return false, err
	}
	config := s.config
	config.Env = slices.Concat(s.order.Machine, config.Env, s.order.Env)
	if s.order.Rootless {
		// It is root already, and where USER says so kaniko would also set
		// root's groups, which nobody may without root on this machine.
		config.User = ""
	}
	if err := k.ExecuteCommand(&config, s.args); err != nil {
		return false, err
	}
	return s.files.takeAll(s.place)
}

// hereDocuments puts the documents of a RUN where a shell finds them: kaniko
// would run the line without them, which does nothing.
func hereDocuments(c *instructions.RunCommand) error {
	if len(c.Files) == 0 {
		return nil
	}
	if len(c.CmdLine) != 1 || !c.PrependShell {
		return fmt.Errorf("a here-document here is not understood")
	}
	if doc, err := parser.ParseHeredoc(c.CmdLine[0]); err == nil && doc != nil {
		data := c.Files[0].Data
		if c.Files[0].Chomp {
			data = parser.ChompHeredocContent(data)
		}
		if strings.HasPrefix(data, "#!") {
			return errors.New("a here-document that begins with #! is not possible here; name the program instead, as in RUN python3 <<EOF")
		}
		c.CmdLine = []string{data}
	} else {
		for _, f := range c.Files {
			c.CmdLine[0] += "\n" + f.Data + f.Name
		}
	}
	c.Files = nil
	return nil
}
