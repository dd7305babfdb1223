package kaniko

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// Problem is one thing to say about a Dockerfile.
type Problem struct {
	Line   int    `json:"line,omitempty"` // from 1; 0 when it belongs to no line
	Column int    `json:"column,omitempty"`
	Rule   string `json:"rule,omitempty"` // BuildKit's name of the rule, or ours
	Text   string `json:"text"`
	URL    string `json:"url,omitempty"` // more about the rule
	// Advice does not stop a build.
	Advice bool `json:"advice,omitempty"`
}

func (p Problem) String() string {
	switch {
	case p.Line > 0 && p.Column > 0:
		return fmt.Sprintf("line %d, column %d: %s", p.Line, p.Column, p.Text)
	case p.Line > 0:
		return fmt.Sprintf("line %d: %s", p.Line, p.Text)
	}
	return p.Text
}

// Problems are all of them at once, in the order of the lines.
type Problems []Problem

func (p Problems) Error() string {
	var lines []string
	for _, x := range p {
		lines = append(lines, x.String())
	}
	return strings.Join(lines, "\n")
}

func (p Problems) sort() {
	sort.SliceStable(p, func(i, j int) bool {
		return p[i].Line < p[j].Line || p[i].Line == p[j].Line && p[i].Column < p[j].Column
	})
}

// Dockerfile is a parsed Dockerfile in which nothing stands that would be done
// quietly in another way than its author expects.
type Dockerfile struct {
	// Bases are the images that the target needs, in the order of the file.
	Bases []Base
	// Secrets are what the target's instructions mount.
	Secrets []Secret

	stages []stage
	target int
	meta   map[string]string // ARG before the first FROM, resolved
	args   map[string]string // given from outside, and the platform's
}

// Base is an image that a Dockerfile takes files from.
type Base struct {
	Ref          string // variables replaced; never "scratch"
	Line, Column int
	From         bool // by FROM; else by COPY --from or
	Mount        bool // by RUN --mount
}

func (b Base) verb() string {
	switch {
	case b.From:
		return "FROM "
	case b.Mount:
		return "RUN --mount from="
	}
	return "COPY --from="
}

// String is the image as the file names it.
func (b Base) String() string { return b.verb() + b.Ref }

// stage is one FROM and what follows.
type stage struct {
	name   string // as people call it: its name, or its number
	base   string // "" when it stands on another stage
	on     int    // that stage, or -1
	steps  []step
	needed bool // by the target
}

// step is one instruction.
type step struct {
	line  int
	text  string // all its lines as they are in the file
	title string
	run   bool
	args  []string // KEY=value of an ARG
	// A COPY or ADD: sources in the context, cleaned; everything means that
	// they depend on what only the image knows.
	copies     bool
	sources    []string
	column     []int // of each source
	everything bool
	fromStage  int    // -1 for none
	fromImage  string // "" for none
	// taken are the paths of a COPY --from there, cleaned; dir that of a
	// WORKDIR, into the target of a COPY or ADD, documents the names of its
	// here-documents. unclear means that only the image knows some of them.
	taken, documents []string
	dir, into        string
	unclear          bool
	mounts           []mount
	secrets          []Secret
	// order is the stage and the number of the instruction in it.
	stage, number int
}

// lost are folders whose content never reaches an image: they belong to the
// sandbox.
var lost = []string{"/kaniko", "/proc", "/dev", "/sys", "/etc/resolv.conf", "/etc/hosts", "/etc/mtab"}

// maxSteps bounds a stage with all it stands on; an image can't have more
// layers than about that many.
const maxSteps = 200

// Parse reads a Dockerfile. args are the values of --build-arg; target is the
// name or number of the stage to build, "" the last one. What can't be done
// here, or would be done in another way than Docker without saying so, is
// refused: the error is [Problems].
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
	c := checker{
		d: &Dockerfile{meta: map[string]string{}, args: map[string]string{}}, lex: shell.NewLex(tree.EscapeToken),
		lines: strings.Split(string(text), "\n"), env: map[string]string{},
	}
	for k, v := range platformArgs() {
		c.d.args[k], c.d.meta[k], c.env[k] = v, v, v
	}
	for k, v := range args {
		c.d.args[k] = v
	}
	if tree.EscapeToken != '\\' {
		c.at(1, 1)
		c.say("escape", "another escape character than \\ is not possible here")
	}
	c.file(stages, meta, target)
	if len(c.problems) > 0 {
		c.problems.sort()
		return nil, c.problems
	}
	return c.d, nil
}

// platformArgs are the arguments that BuildKit defines in every Dockerfile.
func platformArgs() map[string]string {
	m := map[string]string{"TARGETVARIANT": "", "BUILDVARIANT": ""}
	for _, p := range []string{"TARGET", "BUILD"} {
		m[p+"OS"], m[p+"ARCH"], m[p+"PLATFORM"] = "linux", runtime.GOARCH, "linux/"+runtime.GOARCH
	}
	return m
}

// split parses the instructions one by one, so that every wrong one is named.
func split(tree *parser.Node) (stages []instructions.Stage, meta []instructions.ArgCommand, problems Problems) {
	for _, n := range tree.Children {
		cmd, err := instructions.ParseInstruction(n)
		if err != nil {
			problems = append(problems, Problem{Line: n.StartLine, Text: err.Error()})
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
				problems = append(problems, Problem{Line: n.StartLine, Text: "an instruction before the first FROM"})
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
	d     *Dockerfile
	lex   *shell.Lex
	lines []string
	env   map[string]string // declared so far
	envs  []map[string]string
	// dir is the working folder, below the base's when it is not absolute; nil
	// when nobody knows.
	dir      *string
	dirs     []*string
	where    []parser.Range
	problems Problems
	stages   []instructions.Stage
	current  int
}

func (c *checker) at(line, column int) {
	c.where = []parser.Range{{Start: parser.Position{Line: line, Character: column}, End: parser.Position{Line: line}}}
}

// say refuses the current instruction. The column is where the first of words
// stands, else the instruction.
func (c *checker) say(rule, format string, args ...any) { c.sayAt("", rule, format, args...) }

func (c *checker) sayAt(word, rule, format string, args ...any) {
	l, col := place(c.lines, c.where, word)
	c.problems = append(c.problems, Problem{Line: l, Column: col, Rule: rule, Text: fmt.Sprintf(format, args...)})
}

// place finds word in the lines of an instruction; columns count characters
// from 1.
func place(lines []string, where []parser.Range, word string) (line, column int) {
	if len(where) == 0 {
		return 0, 0
	}
	first, last := where[0].Start.Line, where[len(where)-1].End.Line
	if first < 1 || first > len(lines) {
		return first, 0
	}
	if word != "" {
		for l := first; l <= min(max(first, last), len(lines)); l++ {
			if i := strings.Index(lines[l-1], word); i >= 0 {
				return l, utf8.RuneCountInString(lines[l-1][:i]) + 1
			}
		}
	}
	head := lines[first-1]
	return first, utf8.RuneCountInString(head) - utf8.RuneCountInString(strings.TrimLeftFunc(head, unicode.IsSpace)) + 1
}

// expand replaces variables; ok is false when one isn't known from this file.
func (c *checker) expand(word string) (out string, unknown []string, err error) {
	var env []string
	for k, v := range c.env {
		env = append(env, k+"="+v)
	}
	out, names, err := c.lex.ProcessWord(word, shell.EnvsFromSlice(env))
	for n := range names {
		unknown = append(unknown, n)
	}
	sort.Strings(unknown)
	return out, unknown, err
}

// expandFrom is expand where nothing else can know a variable.
func (c *checker) expandFrom(what, word string) (string, bool) {
	out, unknown, err := c.expand(word)
	if err != nil {
		c.sayAt(word, "", "%s %s: %v", what, word, err)
		return "", false
	}
	if len(unknown) > 0 {
		c.sayAt(word, "UndefinedArgInFrom", "%s %s: the value of %s is not known; declare it with ARG before the first FROM", what, word, strings.Join(unknown, ", "))
		return "", false
	}
	return out, true
}

func (c *checker) file(stages []instructions.Stage, meta []instructions.ArgCommand, target string) {
	c.stages = stages
	for _, m := range meta {
		c.where = m.Location()
		for _, a := range m.Args {
			c.arg(a)
		}
	}
	c.d.meta = c.env
	for i := range stages {
		c.current = i
		c.stage(&stages[i])
	}
	c.d.target = len(stages) - 1
	if target != "" {
		if c.d.target = c.find(target, len(stages)); c.d.target < 0 {
			c.where = nil
			c.say("", "there is no stage %q", target)
			return
		}
	}
	c.need(c.d.target)
	for i := range c.d.stages {
		s := &c.d.stages[i]
		c.where = stages[i].Location
		if n := len(c.d.chain(i)); s.needed && n > maxSteps {
			c.say("", "the stage has %d instructions with those it stands on; %d are possible", n, maxSteps)
		}
	}
	c.bases()
}

// find is the earlier stage with a name or number; -1 for none.
func (c *checker) find(name string, before int) int {
	for i := before - 1; i >= 0; i-- {
		if c.stages[i].Name != "" && strings.EqualFold(c.stages[i].Name, name) {
			return i
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n < before {
		return n
	}
	return -1
}

func (c *checker) need(i int) {
	s := &c.d.stages[i]
	if s.needed {
		return
	}
	s.needed = true
	if s.on >= 0 {
		c.need(s.on)
	}
	for _, st := range s.steps {
		if st.fromStage >= 0 {
			c.need(st.fromStage)
		}
		for _, m := range st.mounts {
			if m.fromStage >= 0 {
				c.need(m.fromStage)
			}
		}
	}
}

func (c *checker) bases() {
	for i, s := range c.d.stages {
		if !s.needed {
			continue
		}
		if s.base != "" && s.base != scratch {
			l, col := place(c.lines, c.stages[i].Location, c.stages[i].BaseName)
			c.d.Bases = append(c.d.Bases, Base{Ref: s.base, Line: l, Column: col, From: true})
		}
		for n, st := range s.steps {
			add := func(ref string, mount bool) {
				if ref != "" {
					l, col := place(c.lines, c.stages[i].Commands[n].Location(), ref)
					c.d.Bases = append(c.d.Bases, Base{Ref: ref, Line: l, Column: col, Mount: mount})
				}
			}
			add(st.fromImage, false)
			for _, m := range st.mounts {
				add(m.fromImage, true)
			}
			c.d.Secrets = append(c.d.Secrets, st.secrets...)
		}
	}
}

// scratch is the image without files.
const scratch = "scratch"

func (c *checker) stage(in *instructions.Stage) {
	c.where = in.Location
	s := stage{name: in.Name, on: -1}
	if s.name == "" {
		s.name = strconv.Itoa(c.current)
	}
	c.env = c.d.meta
	if base, ok := c.expandFrom("FROM", in.BaseName); ok {
		s.on = c.find(base, c.current)
		if _, err := strconv.Atoi(base); err == nil {
			s.on = -1 // FROM knows names only
		}
		if s.on < 0 {
			s.base = base
		}
		if base == "" {
			c.say("", "FROM names no image")
		}
	}
	if in.Platform != "" {
		if p, ok := c.expandFrom("FROM --platform", in.Platform); ok && p != "linux/"+runtime.GOARCH {
			c.sayAt("--platform", "", "FROM --platform=%s: this machine builds linux/%s only", p, runtime.GOARCH)
		}
	}
	c.env, c.dir = map[string]string{}, new("")
	if s.on >= 0 {
		c.dir = c.dirs[s.on]
		for k, v := range c.envs[s.on] {
			c.env[k] = v
		}
	}
	for n, cmd := range in.Commands {
		c.where = cmd.Location()
		st := step{line: start(c.where), text: c.source(), title: fmt.Sprint(cmd), fromStage: -1, stage: c.current, number: n}
		c.command(cmd, &st)
		s.steps = append(s.steps, st)
	}
	c.envs, c.dirs = append(c.envs, c.env), append(c.dirs, c.dir)
	c.d.stages = append(c.d.stages, s)
}

// source is the current instruction as it is written.
func (c *checker) source() string {
	if len(c.where) == 0 {
		return ""
	}
	from, to := c.where[0].Start.Line, c.where[len(c.where)-1].End.Line
	if from < 1 || from > len(c.lines) {
		return ""
	}
	return strings.Join(c.lines[from-1:min(max(from, to), len(c.lines))], "\n")
}

// chain are the steps of a stage, after those of the stages below it.
func (d *Dockerfile) chain(i int) []step {
	var all []step
	for ; i >= 0; i = d.stages[i].on {
		all = append(slices.Clone(d.stages[i].steps), all...)
	}
	return all
}

// root is the image that a stage stands on in the end.
func (d *Dockerfile) root(i int) string {
	for d.stages[i].on >= 0 {
		i = d.stages[i].on
	}
	return d.stages[i].base
}

func (c *checker) command(cmd instructions.Command, st *step) {
	switch v := cmd.(type) {
	case *instructions.ArgCommand:
		for _, a := range v.Args {
			c.arg(a)
			// Where the value comes from the image, the text says enough.
			st.args = append(st.args, a.Key+"="+c.env[a.Key])
		}
	case *instructions.EnvCommand:
		next := map[string]string{}
		for _, kv := range v.Env {
			// An unknown variable may come from the base: only a source that
			// uses this one needs to know.
			if val, unknown, err := c.expand(kv.Value); err == nil && len(unknown) == 0 {
				next[kv.Key] = val
			} else {
				delete(c.env, kv.Key)
			}
		}
		for k, val := range next {
			c.env[k] = val
		}
	case *instructions.RunCommand:
		st.run = true
		for _, f := range v.FlagsUsed {
			if f != "mount" {
				c.sayAt("--"+f, "RunFlag", "RUN --%s is not possible here", f)
			}
		}
		c.mounts(v, st)
		if len(v.Files) > 0 && strings.HasPrefix(v.Files[0].Data, "#!") {
			c.say("RunHeredoc", "RUN with a here-document that begins with #!: name the program instead, as in RUN python3 <<EOF")
		}
	case *instructions.CopyCommand:
		st.copies = true
		if v.From != "" {
			if st.fromStage = c.find(v.From, c.current); st.fromStage < 0 {
				st.fromImage = v.From
				if _, err := strconv.Atoi(v.From); err == nil || strings.EqualFold(v.From, c.stages[c.current].Name) {
					c.sayAt("--from", "CopyFrom", "COPY --from=%s: there is no such stage before this one", v.From)
				}
			}
		}
		c.copy("COPY", v.SourcesAndDest, st)
	case *instructions.AddCommand:
		st.copies = true
		st.unclear = true // archives hold names
		if v.KeepGitDir || v.Checksum != "" {
			c.say("AddFlag", "ADD --keep-git-dir and --checksum are not possible here")
		}
		c.copy("ADD", v.SourcesAndDest, st)
	case *instructions.WorkdirCommand:
		c.reaches("WORKDIR", v.Path)
		st.dir = c.known(v.Path, st)
		c.workdir(v.Path)
	case *instructions.VolumeCommand:
		for _, v := range v.Volumes {
			c.reaches("VOLUME", v)
		}
	case *instructions.OnbuildCommand:
		c.say("Onbuild", "ONBUILD is not possible here")
	}
}

func (c *checker) arg(a instructions.KeyValuePairOptional) {
	if v, ok := c.d.args[a.Key]; ok {
		c.env[a.Key] = v
		return
	}
	if v, ok := c.d.meta[a.Key]; ok && a.Value == nil {
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
	v, unknown, err := c.expand(*a.Value)
	switch {
	case err != nil:
		c.say("", "ARG %s: %v", a.Key, err)
	case len(unknown) > 0:
		delete(c.env, a.Key) // the base may know them
	default:
		c.env[a.Key] = v
	}
}

func (c *checker) copy(verb string, s instructions.SourcesAndDest, st *step) {
	c.reaches(verb+" to", s.DestPath)
	st.into = c.known(s.DestPath, st)
	for _, doc := range s.SourceContents {
		st.documents = append(st.documents, doc.Path)
	}
	if len(s.SourcePaths)+len(s.SourceContents) > 1 && !strings.HasSuffix(s.DestPath, "/") {
		if to, unknown, err := c.expand(s.DestPath); err == nil && len(unknown) == 0 && !strings.HasSuffix(to, "/") && to != "." {
			c.sayAt(s.DestPath, "CopyTarget", "%s of several files: the target %s must be a folder and end with /", verb, s.DestPath)
		}
	}
	for _, word := range s.SourcePaths {
		src, unknown, err := c.expand(word)
		if err != nil {
			c.sayAt(word, "", "%s %s: %v", verb, word, err)
			continue
		}
		if verb == "ADD" && remoteSource(src) {
			c.sayAt(word, "AddRemote", "ADD %s: fetching is not possible here; fetch it in build.command with a checksum, and COPY it", src)
			continue
		}
		if st.fromStage >= 0 || st.fromImage != "" {
			st.taken = append(st.taken, clean(c.known(word, st)))
			continue
		}
		if len(unknown) > 0 {
			st.everything = true
			continue
		}
		// An absolute source is meant from the context's root.
		if rel := path.Clean(strings.TrimLeft(src, "/")); rel == ".." || strings.HasPrefix(rel, "../") {
			c.sayAt(word, "CopyLeavesContext", "%s %s leaves the build context", verb, src)
			continue
		}
		_, column := place(c.lines, c.where, word)
		st.sources = append(st.sources, cmp.Or(clean(src), "."))
		st.column = append(st.column, column)
	}
}

// known is a path that an instruction names, or the step is unclear.
func (c *checker) known(word string, st *step) string {
	p, unknown, err := c.expand(word)
	st.unclear = st.unclear || err != nil || len(unknown) > 0
	return p
}

// reaches refuses a target whose content would not be in the image.
func (c *checker) reaches(what, word string) {
	p, unknown, err := c.expand(word)
	if err != nil || len(unknown) > 0 {
		return // the executor looks again
	}
	if l := Lost(p); l != "" {
		c.sayAt(word, "LostPath", "%s %s: what is put there never reaches the image", what, p)
	}
}

// Lost is the folder of the sandbox that p lies in; "" for none.
func Lost(p string) string {
	p = path.Clean(p)
	for _, l := range lost {
		if p == l || strings.HasPrefix(p, l+"/") {
			return l
		}
	}
	return ""
}

func remoteSource(s string) bool {
	for _, p := range []string{"http://", "https://", "git://", "git@", "ssh://"} {
		if strings.HasPrefix(strings.ToLower(s), p) {
			return true
		}
	}
	return false
}

// located is the parser's error with its line.
func located(err error) Problem {
	var l *parser.LocationError
	if errors.As(err, &l) && len(l.Locations) > 0 {
		return Problem{Line: start(l.Locations[0]), Text: err.Error()}
	}
	return Problem{Text: err.Error()}
}

func start(r []parser.Range) int {
	if len(r) == 0 {
		return 0
	}
	return r[0].Start.Line
}
