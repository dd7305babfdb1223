// Package tagged finds, compiles and runs the Go tests of a build tag, and says
// how many ran. Compiling comes first, so a package that does not compile is
// known before a cluster is started for it.
package tagged

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"
)

// Package is a folder with tests of a tag.
type Package struct {
	Module string // folder of its go.mod
	Dir    string
	Tests  []string // of the tag alone: make test runs the others
	binary string
}

// Name is the folder relative to the checkout.
func (p Package) Name(root string) string {
	if r, err := filepath.Rel(root, p.Dir); err == nil {
		return "./" + filepath.ToSlash(r)
	}
	return p.Dir
}

// Find lists the packages of the given modules with a test file that is
// compiled with tag and not without. Modules below a module are left to
// themselves.
func Find(modules []string, tag string) ([]Package, error) {
	var found []Package
	for _, m := range modules {
		dirs := map[string][]string{}
		err := filepath.WalkDir(m, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if path == m {
					return nil
				}
				if n := d.Name(); strings.HasPrefix(n, ".") || strings.HasPrefix(n, "_") || n == "testdata" || n == "node_modules" {
					return fs.SkipDir
				}
				if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
					return fs.SkipDir
				}
				return nil
			}
			if !strings.HasSuffix(path, "_test.go") {
				return nil
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if !needs(b, tag) {
				return nil
			}
			tests, err := testsOf(path, b)
			dirs[filepath.Dir(path)] = append(dirs[filepath.Dir(path)], tests...)
			return err
		})
		if err != nil {
			return nil, err
		}
		for d, tests := range dirs {
			found = append(found, Package{Module: m, Dir: d, Tests: tests})
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Dir < found[j].Dir })
	return found, nil
}

// testsOf names the tests of a file.
func testsOf(path string, src []byte) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
			all = append(all, fn.Name.Name)
		}
	}
	return all, nil
}

// needs says whether a file is compiled with tag only.
func needs(src []byte, tag string) bool {
	for _, line := range bytes.Split(src, []byte("\n")) {
		s := strings.TrimSpace(string(line))
		if constraint.IsGoBuild(s) {
			x, err := constraint.Parse(s)
			if err != nil {
				return false
			}
			with := func(yes bool) bool {
				return x.Eval(func(t string) bool { return t == "linux" || t == "unix" || yes && t == tag })
			}
			return with(true) && !with(false)
		}
		if strings.HasPrefix(s, "package ") {
			return false
		}
	}
	return false
}

// Compile makes a test binary of each package in dir.
func Compile(ctx context.Context, root, tag, dir string, pkgs []Package, stderr io.Writer) error {
	var bad []string
	for i := range pkgs {
		pkgs[i].binary = filepath.Join(dir, fmt.Sprintf("%d.test", i))
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", tag, "-o", pkgs[i].binary, ".")
		cmd.Dir = pkgs[i].Dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = stderr, stderr
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			bad = append(bad, pkgs[i].Name(root))
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("tests of %s do not compile", strings.Join(bad, ", "))
	}
	return nil
}

// Plan is what a process inside the lab runs; it survives as JSON.
type Plan struct {
	Root    string        `json:"root"`
	Tests   []Test        `json:"tests"`
	Run     string        `json:"run,omitempty"` // -run of each binary
	Timeout time.Duration `json:"timeout"`       // of each binary
}

// Test is a compiled package.
type Test struct {
	Name   string   `json:"name"`
	Dir    string   `json:"dir"`
	Binary string   `json:"binary"`
	Run    string   `json:"run,omitempty"` // -run, where the plan has none
	Args   []string `json:"args,omitempty"`
	// Names are the tests that must run; these are shown and counted, not what
	// they consist of. Without any, tests without subtests are.
	Names []string `json:"names,omitempty"`
}

// NewPlan lists compiled packages with the tests of the tag, of which run is a
// choice; it may also name others of those packages.
func NewPlan(root string, pkgs []Package, run string, timeout time.Duration) Plan {
	p := Plan{Root: root, Run: run, Timeout: timeout}
	for _, k := range pkgs {
		p.Tests = append(p.Tests, Test{Name: k.Name(root), Dir: k.Dir, Binary: k.binary, Run: "^(" + strings.Join(k.Tests, "|") + ")$"})
	}
	return p
}

// Count is how tests ended. Subtests are counted, their parents are not.
type Count struct{ Passed, Failed, Skipped int }

// Ran is the number of tests that did not skip.
func (c Count) Ran() int { return c.Passed + c.Failed }

// ErrFailed says that a test failed; details were printed.
var ErrFailed = errors.New("tests failed")

// Execute runs the binaries one after the other in their folders, prints a line per
// test, and the output of those that fail or skip.
func (p Plan) Execute(ctx context.Context, w io.Writer) (Count, error) {
	var sum Count
	var failed []string
	for _, t := range p.Tests {
		fmt.Fprintf(w, "== %s\n", t.Name)
		c, err := p.one(ctx, t, w)
		sum.Passed, sum.Failed, sum.Skipped = sum.Passed+c.Passed, sum.Failed+c.Failed, sum.Skipped+c.Skipped
		if ctx.Err() != nil {
			return sum, ctx.Err()
		}
		if err != nil {
			failed = append(failed, t.Name)
			fmt.Fprintf(w, "-- %s: %v\n", t.Name, err)
		}
	}
	if len(failed) > 0 {
		return sum, fmt.Errorf("%w: %s", ErrFailed, strings.Join(failed, ", "))
	}
	return sum, nil
}

func (p Plan) one(ctx context.Context, t Test, w io.Writer) (Count, error) {
	// Tests that are parallel wait for the cluster's clocks, not for this machine.
	args := []string{"-test.v=test2json", "-test.parallel=4", "-test.timeout=" + p.Timeout.String()}
	if run := cmp.Or(p.Run, t.Run); run != "" {
		args = append(args, "-test.run="+run)
	}
	args = append(args, t.Args...)
	cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "test2json", "-t", t.Binary}, args...)...)
	cmd.Dir = t.Dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return Count{}, err
	}
	var errs bytes.Buffer // not w, which is written to at the same time
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return Count{}, err
	}
	names := t.Names
	if p.Run != "" {
		names = nil // a choice of them runs
	}
	c, readErr := report(out, w, names)
	err = errors.Join(cmd.Wait(), readErr)
	fmt.Fprint(w, &errs)
	return c, err
}

// event is a line of test2json.
type event struct {
	Action  string
	Test    string
	Elapsed float64
	Output  string
}

// report turns test2json's events into lines and counts; with names, of those
// tests alone, each of which must run.
func report(r io.Reader, w io.Writer, names []string) (Count, error) {
	var c Count
	output := map[string]*strings.Builder{}
	parents, missing := map[string]bool{}, map[string]bool{}
	for _, n := range names {
		missing[n] = true
	}
	dec := json.NewDecoder(r)
	for {
		var e event
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return c, fmt.Errorf("read test output: %w", err)
		}
		if e.Action == "run" {
			if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
				parents[e.Test[:i]] = true
			}
		}
		if e.Action == "output" {
			if output[e.Test] == nil {
				output[e.Test] = new(strings.Builder)
			}
			output[e.Test].WriteString(e.Output)
			continue
		}
		if e.Action != "pass" && e.Action != "fail" && e.Action != "skip" {
			continue
		}
		if e.Test == "" { // the binary as a whole
			if o := output[""]; e.Action == "fail" && o != nil {
				fmt.Fprint(w, o)
			}
			continue
		}
		counts := !parents[e.Test]
		if len(names) > 0 {
			counts = slices.Contains(names, e.Test)
		}
		if counts {
			delete(missing, e.Test)
			switch e.Action {
			case "pass":
				c.Passed++
			case "fail":
				c.Failed++
			case "skip":
				c.Skipped++
			}
		}
		if len(names) == 0 || counts || e.Action == "fail" {
			fmt.Fprintf(w, "%s %s (%.1f s)\n", e.Action, e.Test, e.Elapsed)
		}
		if o := output[e.Test]; o != nil && e.Action != "pass" && (len(names) == 0 || e.Action == "fail") {
			for _, line := range strings.Split(strings.TrimRight(o.String(), "\n"), "\n") {
				if !strings.HasPrefix(strings.TrimSpace(line), "=== ") && !strings.HasPrefix(strings.TrimSpace(line), "--- ") {
					fmt.Fprintln(w, "    "+strings.TrimSpace(line))
				}
			}
		}
		delete(output, e.Test)
	}
	if len(missing) > 0 {
		return c, fmt.Errorf("did not run: %s", strings.Join(slices.Sorted(maps.Keys(missing)), ", "))
	}
	return c, nil
}
