package stages

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"

	"github.com/kuroko-faas/kuroko/project"
)

// procfile is where a server's start command stands when faas.yml does not say
// it: the file that Heroku, Cloud Foundry and Cloud Native Buildpacks read.
const procfile = "Procfile"

// program is a language's own, and the first words that mean it.
type program struct {
	path  string
	names []string
	files []string // extensions of what it runs
	env   []string // of a server's image
}

var programs = map[string]program{
	"node":   {"/usr/bin/node", []string{"node"}, []string{".js", ".mjs", ".cjs"}, []string{"NODE_ENV=production"}},
	"python": {"/usr/bin/python3", []string{"python", "python3"}, []string{".py"}, nil},
	"java":   {"/usr/bin/java", []string{"java"}, []string{".jar"}, nil},
}

var javaClass = regexp.MustCompile(`^([A-Za-z_$][\w$]*\.)*[A-Z_$][\w$]*$`)

// errNoStart says that nothing names a server's start command.
var errNoStart = errors.New("contract app needs a start command")

// startCommand is the command of an app function, as a list of words: its
// handler, else, of a server, the Procfile's web line, else, for Node.js,
// package.json's scripts.start. An image has no shell, so what needs one is
// refused.
func startCommand(f project.Function, tree fs.FS) ([]string, error) {
	line, from := f.Handler, "handler"
	if line == "" && f.Kind == project.KindJob {
		return nil, errNoStart // the conventions are about servers
	}
	if line == "" {
		var err error
		if line, from, err = conventionalStart(f.Language, tree); err != nil {
			return nil, err
		}
	}
	words, err := splitWords(line)
	if err != nil {
		return nil, fmt.Errorf("%s: %q: %w", from, line, err)
	}
	if len(words) == 0 {
		return nil, fmt.Errorf("%s: %w", from, errNoStart)
	}
	return withProgram(f.Language, words), nil
}

func conventionalStart(language string, tree fs.FS) (line, from string, err error) {
	data, err := fs.ReadFile(tree, procfile)
	if err == nil {
		for s := bufio.NewScanner(strings.NewReader(string(data))); s.Scan(); {
			if cmd, ok := strings.CutPrefix(s.Text(), "web:"); ok {
				return strings.TrimSpace(cmd), procfile, nil
			}
		}
		return "", "", fmt.Errorf("%w: %s has no line web: COMMAND", errNoStart, procfile)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	if language != "node" {
		return "", "", errNoStart
	}
	data, err = fs.ReadFile(tree, manifests["node"])
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	var m struct {
		Scripts struct {
			Start string `json:"start"`
		} `json:"scripts"`
	}
	// A package.json that is broken is told where dependencies are read.
	if err != nil || json.Unmarshal(data, &m) != nil || m.Scripts.Start == "" {
		return "", "", errNoStart
	}
	return m.Scripts.Start, "package.json: scripts.start", nil
}

// withProgram puts the language's program in front of what is not one itself:
// a file, an option, a Java class.
func withProgram(language string, words []string) []string {
	p, ok := programs[language]
	if !ok {
		return words
	}
	first := words[0]
	for _, n := range p.names {
		if first == n {
			return append([]string{p.path}, words[1:]...)
		}
	}
	switch {
	case language == "java" && path.Ext(first) == ".jar":
		return append([]string{p.path, "-jar"}, words...)
	case strings.HasPrefix(first, "-"), language == "java" && javaClass.MatchString(first):
		return append([]string{p.path}, words...)
	}
	for _, ext := range p.files {
		if path.Ext(first) == ext {
			return append([]string{p.path}, words...)
		}
	}
	return words
}

// startFile is the file of the repository that a start command names, if it
// can be known.
func startFile(language string, argv []string) string {
	p := programs[language]
	for i, w := range argv {
		if i > 0 && strings.HasPrefix(w, "-") && w != "-jar" {
			return "" // an option: what follows may be its value
		}
		for _, ext := range p.files {
			if path.Ext(w) == ext && !path.IsAbs(w) {
				return path.Clean(w)
			}
		}
	}
	return ""
}

// splitWords splits as a shell does, quotes and backslashes included, and
// refuses what only a shell can do.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	escaped := false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case quote == '\'' && c != '\'':
			word.WriteRune(c)
		case c == '\\':
			escaped, in = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, in = c, true
		case c == '$' || c == '`' || quote == 0 && strings.ContainsRune("|&;<>()", c):
			return nil, fmt.Errorf("%q needs a shell, and an image has none: write a program and its arguments, and read PORT in the program", string(c))
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			in = true
			word.WriteRune(c)
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is not closed")
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// checkStart is [checkHandlers] for a server's start command.
func checkStart(f project.Function, root *os.Root, which func(string) bool) (why, next string) {
	argv, err := startCommand(f, root.FS())
	at := fmt.Sprintf("line %d: functions.%s", f.Line, f.Name)
	switch {
	case errors.Is(err, errNoStart):
		if f.Kind == project.KindJob {
			return at + ": " + err.Error(), "add handler: the job's program and its arguments"
		}
		return at + ": " + err.Error(), "add handler: " + map[string]string{"python": "app.py", "java": "target/app.jar", "node": "server.js"}[f.Language] +
			", or a " + procfile + " with a line web: COMMAND"
	case err != nil:
		return at + "." + err.Error(), ""
	}
	if file := startFile(f.Language, argv); file != "" && which(file) && !anyFile(root, []string{file}) {
		return fmt.Sprintf("%s: its start command names %s, which is not there", at, file), ""
	}
	return "", ""
}

// appOf is the unit's function when it is a program of its own: a server, or a
// job that is not called but run.
func appOf(u project.Unit) (project.Function, bool) {
	if len(u.Functions) == 1 && u.Functions[0].Contract == "app" {
		return u.Functions[0], true
	}
	return project.Function{}, false
}
