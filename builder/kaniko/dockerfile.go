package kaniko

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Problem is one reason why a Dockerfile is refused.
type Problem struct {
	Line int // from 1; 0 when it belongs to no line
	Text string
}

// Problems are all the reasons at once, in the order of the lines.
type Problems []Problem

func (p Problems) Error() string {
	var lines []string
	for _, x := range p {
		if x.Line > 0 {
			lines = append(lines, fmt.Sprintf("line %d: %s", x.Line, x.Text))
		} else {
			lines = append(lines, x.Text)
		}
	}
	return strings.Join(lines, "\n")
}

// Dockerfile is a parsed Dockerfile of one stage in which nothing stands that
// kaniko would do quietly in another way than its author expects.
type Dockerfile struct {
	// Base is "scratch" or the image reference of FROM, variables replaced.
	Base   string
	text   []byte
	copies []copying
}

// copying is one COPY or ADD.
type copying struct {
	line    int
	verb    string
	sources []string
}

// Folders whose content never reaches an image: they belong to the sandbox.
var lost = []string{"/kaniko", "/proc", "/dev", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/mtab"}

// Parse reads a Dockerfile. args are the values of --build-arg; target, when
// not empty, must be the name of the only stage. What kaniko can't do, or
// does in another way than Docker without saying so, is refused: the error is
// [Problems].
func Parse(text []byte, args map[string]string, target string) (*Dockerfile, error) {
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, Problems{located(err)}
	}
	stages, meta, problems := split(tree.AST)
	if len(problems) > 0 {
		return nil, problems
	}
	if len(stages) == 0 {
		return nil, Problems{{Text: "there is no FROM"}}
	}
	d := &Dockerfile{text: text}
	c := checker{d: d, lex: shell.NewLex(tree.EscapeToken), args: args, env: map[string]string{}}
	c.from(stages, meta, target)
	for _, cmd := range stages[0].Commands {
		c.line = line(cmd.Location())
		c.command(cmd)
	}
	if len(c.problems) > 0 {
		sort.SliceStable(c.problems, func(i, j int) bool { return c.problems[i].Line < c.problems[j].Line })
		return nil, c.problems
	}
	return d, nil
}

// split parses the instructions one by one, so that every wrong one is named.
func split(tree *parser.Node) (stages []instructions.Stage, meta []instructions.ArgCommand, problems Problems) {
	for _, n := range tree.Children {
		cmd, err := instructions.ParseInstruction(n)
		if err != nil {
			problems = append(problems, Problem{n.StartLine, err.Error()})
			continue
		}
		switch v := cmd.(type) {
		case *instructions.Stage:
			stages = append(stages, *v)
		case *instructions.ArgCommand:
			if len(stages) == 0 {
				meta = append(meta, *v)
			} else {
				stages[len(stages)-1].AddCommand(v)
			}
		case instructions.Command:
			if len(stages) == 0 {
				problems = append(problems, Problem{n.StartLine, "an instruction before the first FROM"})
			} else {
				stages[len(stages)-1].AddCommand(v)
			}
		}
	}
	return stages, meta, problems
}

// checker walks the instructions and follows the variables that sources may
// be written with.
type checker struct {
	d        *Dockerfile
	lex      *shell.Lex
	args     map[string]string // given from outside
	meta     map[string]string // declared before FROM
	env      map[string]string // declared so far
	line     int
	problems Problems
}

func (c *checker) say(format string, args ...any) {
	c.problems = append(c.problems, Problem{Line: c.line, Text: fmt.Sprintf(format, args...)})
}

// expand replaces variables; ok is false, and said, when one isn't known.
func (c *checker) expand(what, word string) (string, bool) {
	var env []string
	for k, v := range c.env {
		env = append(env, k+"="+v)
	}
	out, unknown, err := c.lex.ProcessWord(word, shell.EnvsFromSlice(env))
	if err != nil {
		c.say("%s %s: %v", what, word, err)
		return "", false
	}
	if len(unknown) > 0 {
		var names []string
		for n := range unknown {
			names = append(names, n)
		}
		sort.Strings(names)
		c.say("%s %s: the value of %s is not known from this file; declare it with ARG or ENV", what, word, strings.Join(names, ", "))
		return "", false
	}
	return out, true
}

func (c *checker) from(stages []instructions.Stage, meta []instructions.ArgCommand, target string) {
	c.meta = map[string]string{}
	for _, m := range meta {
		c.line = line(m.Location())
		for _, a := range m.Args {
			c.arg(a)
		}
	}
	c.meta, c.env = c.env, map[string]string{}
	first := stages[0]
	c.line = line(first.Location)
	c.env = c.meta
	if base, ok := c.expand("FROM", first.BaseName); ok {
		if base == "" {
			c.say("FROM names no image")
		}
		c.d.Base = base
	}
	if first.Platform != "" {
		if p, ok := c.expand("FROM --platform", first.Platform); ok && p != "linux/"+runtime.GOARCH {
			c.say("FROM --platform=%s: this machine builds linux/%s only", p, runtime.GOARCH)
		}
	}
	c.env = map[string]string{}
	if target != "" && target != "0" && !strings.EqualFold(target, first.Name) {
		c.say("there is no stage %q", target)
	}
	for _, s := range stages[1:] {
		c.line = line(s.Location)
		c.say("a second FROM: images of several stages can't be built here; make the files in build.command, and COPY them")
	}
}

func (c *checker) command(cmd instructions.Command) {
	switch v := cmd.(type) {
	case *instructions.ArgCommand:
		for _, a := range v.Args {
			c.arg(a)
		}
	case *instructions.EnvCommand:
		next := map[string]string{}
		for _, kv := range v.Env {
			// An unknown variable may come from the base: only a source that
			// uses this one needs to know.
			var env []string
			for k, v := range c.env {
				env = append(env, k+"="+v)
			}
			if val, unknown, err := c.lex.ProcessWord(kv.Value, shell.EnvsFromSlice(env)); err == nil && len(unknown) == 0 {
				next[kv.Key] = val
			} else {
				delete(c.env, kv.Key)
			}
		}
		for k, val := range next {
			c.env[k] = val
		}
	case *instructions.RunCommand:
		if len(v.Files) > 0 {
			c.say("RUN with a here-document does nothing here; write a script into the repository and COPY it")
		}
		for _, f := range v.FlagsUsed {
			if f == "mount" {
				c.say("RUN --mount is not possible here: the command would run without the mount; secrets and caches belong into build.command")
			} else {
				c.say("RUN --%s is not possible here", f)
			}
		}
	case *instructions.CopyCommand:
		if v.From != "" {
			c.say("COPY --from=%s: there is no other stage or image here", v.From)
			return
		}
		c.copyFlags("COPY", v.Link, v.Parents, v.ExcludePatterns, v.Chown)
		c.copy("COPY", v.SourcesAndDest)
	case *instructions.AddCommand:
		if v.KeepGitDir || v.Checksum != "" {
			c.say("ADD --keep-git-dir and --checksum are not possible here")
		}
		c.copyFlags("ADD", v.Link, false, v.ExcludePatterns, v.Chown)
		c.copy("ADD", v.SourcesAndDest)
	case *instructions.WorkdirCommand:
		c.place("WORKDIR", v.Path)
	case *instructions.VolumeCommand:
		c.say("VOLUME: what later instructions put there would be missing from the image, and functions have no volumes")
	case *instructions.OnbuildCommand:
		c.say("ONBUILD is not possible here")
	}
}

func (c *checker) arg(a instructions.KeyValuePairOptional) {
	if v, ok := c.args[a.Key]; ok {
		c.env[a.Key] = v
		return
	}
	if v, ok := c.meta[a.Key]; ok && a.Value == nil {
		c.env[a.Key] = v
		return
	}
	if a.Value == nil {
		// Declared without a value: empty, unless an ENV has it.
		if _, ok := c.env[a.Key]; !ok {
			c.env[a.Key] = ""
		}
		return
	}
	if v, ok := c.expand("ARG "+a.Key, *a.Value); ok {
		c.env[a.Key] = v
	}
}

func (c *checker) copyFlags(verb string, link, parents bool, exclude []string, chown string) {
	if link || parents || len(exclude) > 0 {
		c.say("%s --link, --parents and --exclude would be ignored here", verb)
	}
	if chown != "" && chown != "0" && chown != "0:0" && chown != "root" && chown != "root:root" {
		c.say("%s --chown would also give new parent folders away; use RUN chown after it", verb)
	}
}

func (c *checker) copy(verb string, s instructions.SourcesAndDest) {
	if len(s.SourceContents) > 0 {
		c.say("%s with a here-document is not possible here; put the file into the repository", verb)
		return
	}
	c.place(verb+" to", s.DestPath)
	x := copying{line: c.line, verb: verb}
	for _, src := range s.SourcePaths {
		src, ok := c.expand(verb, src)
		if !ok {
			continue
		}
		if verb == "ADD" && remoteSource(src) {
			c.say("ADD %s: fetching is not possible here; fetch it in build.command with a checksum, and COPY it", src)
			continue
		}
		// An absolute source is meant from the context's root.
		if rel := path.Clean(strings.TrimLeft(src, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
			c.say("%s %s leaves the build context", verb, src)
			continue
		}
		x.sources = append(x.sources, path.Clean(strings.TrimPrefix(path.Clean("/"+src), "/")))
	}
	c.d.copies = append(c.d.copies, x)
}

// place refuses a target whose content would not be in the image.
func (c *checker) place(what, p string) {
	p, ok := c.expand(what, p)
	if !ok || !path.IsAbs(p) {
		return
	}
	p = path.Clean(p)
	for _, l := range lost {
		if p == l || strings.HasPrefix(p, l+"/") {
			c.say("%s %s: what is put there never reaches the image", what, p)
		}
	}
}

func remoteSource(s string) bool {
	for _, p := range []string{"http://", "https://", "git://", "git@", "ssh://"} {
		if strings.HasPrefix(strings.ToLower(s), p) {
			return true
		}
	}
	return false
}

// Check looks at the context that the Dockerfile copies from: every source
// exists and stays inside, also through symbolic links. The error is
// [Problems].
func (d *Dockerfile) Check(ctx *os.Root) error {
	var all Problems
	seen := map[string][]string{}
	for _, c := range d.copies {
		for _, src := range c.sources {
			texts, ok := seen[src]
			if !ok {
				texts = checkSource(ctx, src)
				seen[src] = texts
			}
			for _, t := range texts {
				all = append(all, Problem{Line: c.line, Text: c.verb + " " + t})
			}
		}
	}
	if len(all) > 0 {
		return all
	}
	return nil
}

// maxReported bounds what one source may say.
const maxReported = 5

func checkSource(ctx *os.Root, src string) (problems []string) {
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	names := []string{src}
	if strings.ContainsAny(src, "*?[") {
		var err error
		if names, err = fs.Glob(ctx.FS(), src); err != nil {
			say("%s: %v", src, err)
			return problems
		}
	}
	if len(names) == 0 {
		say("%s: no file matches", src)
	}
	for _, name := range names {
		st, err := ctx.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			say("%s: not in the build context", name)
		case err != nil:
			say("%s leaves the build context through a symbolic link", name)
		case st.Mode().Type() == fs.ModeSymlink:
			say("%s is a symbolic link, which would be copied as a link; name the file it points to", name)
		case st.IsDir():
			problems = append(problems, checkFolder(ctx, name)...)
		case !st.Mode().IsRegular():
			say("%s is neither a file nor a folder", name)
		}
		if len(problems) >= maxReported {
			return append(problems[:maxReported], src+": and more of that kind")
		}
	}
	return problems
}

// checkFolder looks for links out of the context: kaniko would put the files
// that they reach in the base image into the layer once more.
func checkFolder(ctx *os.Root, dir string) (problems []string) {
	err := fs.WalkDir(ctx.FS(), dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case e.Type() == fs.ModeSymlink:
			to, err := ctx.Readlink(name)
			if err != nil {
				return err
			}
			if path.IsAbs(to) || !fs.ValidPath(path.Join(path.Dir(name), to)) {
				problems = append(problems, fmt.Sprintf("%s: the symbolic link %s -> %s leaves the build context", dir, name, to))
			}
		case !e.IsDir() && !e.Type().IsRegular():
			problems = append(problems, fmt.Sprintf("%s: %s is neither a file, a folder nor a link", dir, name))
		}
		if len(problems) >= maxReported {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		problems = append(problems, fmt.Sprintf("%s: %v", dir, err))
	}
	return problems
}

// located is the parser's error with its line.
func located(err error) Problem {
	var l *parser.LocationError
	if errors.As(err, &l) && len(l.Locations) > 0 {
		return Problem{line(l.Locations[0]), err.Error()}
	}
	return Problem{Text: err.Error()}
}

func line(r []parser.Range) int {
	if len(r) == 0 {
		return 0
	}
	return r[0].Start.Line
}
