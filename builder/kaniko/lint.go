package kaniko

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Lint gives advice about a Dockerfile that [Parse] accepts, with BuildKit's
// rules as far as they need no image, and some of our own. "# check=skip=RULE"
// in its first lines silences a rule, and "# check=error=true" makes advice
// stop the build, as with docker build --check.
func Lint(text []byte) Problems {
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil // Parse says it
	}
	var options linter.Config
	if line, _, _, ok := parser.ParseDirective("check", text); ok {
		o, err := linter.ParseLintOptions(line)
		if err != nil {
			return Problems{{Line: 1, Rule: "check", Text: err.Error(), Advice: true}}
		}
		options = *o
	}
	l := lint{lines: strings.Split(string(text), "\n"), strict: options.ReturnAsError}
	options.ReturnAsError = false
	options.Warn = func(rule, _, url, message string, where []parser.Range) { l.add(rule, url, message, where, "") }
	l.linter = linter.New(&options)
	for _, w := range tree.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL && w.Location != nil {
			l.linter.Run(&linter.RuleNoEmptyContinuation, []parser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	stages, meta, err := instructions.Parse(tree.AST, l.linter)
	if err != nil {
		return nil
	}
	for _, a := range meta {
		l.arguments(a)
	}
	l.stages(stages)
	l.found.sort()
	return l.found
}

// lint collects advice.
type lint struct {
	lines  []string
	linter *linter.Linter
	strict bool
	found  Problems
}

func (l *lint) add(rule, url, text string, where []parser.Range, word string) {
	line, column := place(l.lines, where, word)
	l.found = append(l.found, Problem{Line: line, Column: column, Rule: rule, URL: url, Text: text, Advice: !l.strict})
}

// own is advice by a rule of ours, unless it is silenced.
func (l *lint) own(rule, text string, where []parser.Range, word string) {
	if _, skip := l.linter.SkippedRules[rule]; !skip && !l.linter.SkipAll {
		l.add(rule, "", text, where, word)
	}
}

// secretName finds variables that look as if they held a secret.
var secretName = regexp.MustCompile(`(?i)(^|_)(api_?key|auth|credentials?|key|passw(or)?d|pword|secret|token)(_|$)`)

func (l *lint) secret(verb, name string, where []parser.Range) {
	if secretName.MatchString(name) && !strings.HasSuffix(strings.ToLower(name), "public_key") {
		l.linter.Run(&linter.RuleSecretsUsedInArgOrEnv, where, linter.RuleSecretsUsedInArgOrEnv.Format(verb, name))
	}
}

func (l *lint) arguments(a instructions.ArgCommand) {
	for _, kv := range a.Args {
		l.secret("ARG", kv.Key, a.Location())
	}
}

func (l *lint) stages(stages []instructions.Stage) {
	names := map[string]bool{}
	for _, s := range stages {
		if n := strings.ToLower(s.Name); n != "" {
			if names[n] {
				l.linter.Run(&linter.RuleDuplicateStageName, s.Location, linter.RuleDuplicateStageName.Format(s.Name))
			}
			if n == scratch || n == "context" {
				l.linter.Run(&linter.RuleReservedStageName, s.Location, linter.RuleReservedStageName.Format(s.Name))
			}
			names[n] = true
		}
		absolute, seen := false, map[string]bool{}
		for _, cmd := range s.Commands {
			l.command(cmd, &absolute, seen)
		}
	}
}

func (l *lint) command(cmd instructions.Command, absolute *bool, seen map[string]bool) {
	where := cmd.Location()
	once := func(name string) {
		if seen[name] {
			l.linter.Run(&linter.RuleMultipleInstructionsDisallowed, where, linter.RuleMultipleInstructionsDisallowed.Format(name))
		}
		seen[name] = true
	}
	switch c := cmd.(type) {
	case *instructions.ArgCommand:
		l.arguments(*c)
	case *instructions.EnvCommand:
		for _, kv := range c.Env {
			l.secret("ENV", kv.Key, where)
			if kv.NoDelim {
				l.linter.Run(&linter.RuleLegacyKeyValueFormat, where, linter.RuleLegacyKeyValueFormat.Format("ENV"))
			}
		}
	case *instructions.WorkdirCommand:
		if strings.HasPrefix(c.Path, "/") || strings.HasPrefix(c.Path, "$") {
			*absolute = true
		} else if !*absolute {
			l.linter.Run(&linter.RuleWorkdirRelativePath, where, linter.RuleWorkdirRelativePath.Format(c.Path))
		}
	case *instructions.CmdCommand:
		once("CMD")
		l.shellForm("CMD", c.PrependShell, where)
	case *instructions.EntrypointCommand:
		once("ENTRYPOINT")
		l.shellForm("ENTRYPOINT", c.PrependShell, where)
	case *instructions.HealthCheckCommand:
		once("HEALTHCHECK")
	case *instructions.RunCommand:
		if !mountsCache(c) {
			l.leftovers(strings.Join(c.CmdLine, " "), where)
		}
	case *instructions.VolumeCommand:
		l.own("FunctionVolume", "VOLUME: a function has no volumes; what is written there is gone with the instance", where, "")
	}
}

func (l *lint) shellForm(name string, shell bool, where []parser.Range) {
	if shell {
		l.linter.Run(&linter.RuleJSONArgsRecommended, where, linter.RuleJSONArgsRecommended.Format(name))
	}
}

// mountsCache says whether a command has a place for what must not stay.
func mountsCache(c *instructions.RunCommand) bool {
	if err := c.Expand(func(word string) (string, error) { return word, nil }); err != nil {
		return false // told elsewhere
	}
	return slices.ContainsFunc(instructions.GetMounts(c), func(m *instructions.Mount) bool {
		return m.Type == instructions.MountTypeCache || m.Type == instructions.MountTypeTmpfs
	})
}

// leftovers are package managers' caches, which a layer keeps for good.
var leftovers = []struct {
	command *regexp.Regexp
	without []string // any of these says that the author knows
	advice  string
}{
	{regexp.MustCompile(`\bnpm (ci|i|install)\b`), []string{"--cache", "npm cache clean", "/root/.npm"}, "npm's cache stays in the layer; add --cache /tmp/npm and && rm -rf /tmp/npm"},
	{regexp.MustCompile(`\byarn( install)?($|[;&| ])`), []string{"--cache-folder", "yarn cache clean"}, "yarn's cache stays in the layer; add && yarn cache clean"},
	{regexp.MustCompile(`\bpip3? install\b`), []string{"--no-cache-dir", "PIP_NO_CACHE_DIR"}, "pip's cache stays in the layer; add --no-cache-dir"},
	{regexp.MustCompile(`\bapt(-get)? (-\S+ )*install\b`), []string{"/var/lib/apt/lists", "apt-get clean"}, "apt's lists stay in the layer; add && rm -rf /var/lib/apt/lists/*"},
}

func (l *lint) leftovers(command string, where []parser.Range) {
	for _, k := range leftovers {
		word := k.command.FindString(command)
		if word == "" {
			continue
		}
		known := false
		for _, w := range k.without {
			known = known || strings.Contains(command, w)
		}
		if !known {
			l.own("PackageCache", fmt.Sprintf("RUN %s: %s", strings.TrimRight(word, ";&| "), k.advice), where, word)
		}
	}
}

// Pinned says whether a reference names one image for good.
func Pinned(ref string) bool { return strings.Contains(ref, "@sha256:") }
