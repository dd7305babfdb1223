package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kuroko-faas/kuroko/bench/internal/peers"
	"github.com/kuroko-faas/kuroko/bench/internal/services"
)

// application is one to build, and what belongs to it besides its folder.
type application struct {
	peers.App
	about    string // "73 packages"
	runtime  string
	images   images
	packages *services.Server // where its packages come from, which counts
	// source is the text of a source file with the given noise in it; the
	// change of code is one of changed.
	source  func(i int, noise []string) string
	changed string // its name for a number, as a format
	// faasYML and env are for the whole stage-runner.
	faasYML string
	env     []string
}

// images are a runtime's, by digest: what functions run on, and what can run
// an installer.
type images struct{ base, build, abi string }

// kind makes the applications of a name: the folder, and where packages are.
type kind struct {
	runtime string
	make    func(ctx context.Context, b *bench, a *application) error
}

// kinds of applications by name.
var kinds = map[string]kind{
	"node-small": {"nodejs18", nodeApp}, "node-270": {"nodejs18", nodeApp},
	"python": {"python3.11", pythonApp}, "java": {"java17", javaApp},
}

// sources is how many files of code an application has beside its entry.
const sources = 42

// write puts files into the application's folder, and its source files.
func (a *application) write(files map[string]string) error {
	for i := range sources {
		text, err := noise()
		if err != nil {
			return err
		}
		files[fmt.Sprintf(a.changed, i)] = a.source(i, text)
	}
	for f, text := range files {
		p := filepath.Join(a.Dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// change gives one source file other content.
func (a *application) change() error {
	text, err := noise()
	if err != nil {
		return err
	}
	const some = 7
	return os.WriteFile(filepath.Join(a.Dir, fmt.Sprintf(a.changed, some)), []byte(a.source(some, text)), 0o644)
}

// noise is some 5 KB in lines that no cache has seen.
func noise() ([]string, error) {
	raw := make([]byte, 3600)
	if _, err := rand.Read(raw); err != nil {
		return nil, err
	}
	var lines []string
	text := base64.StdEncoding.EncodeToString(raw)
	for i := 0; i < len(text); i += 76 {
		lines = append(lines, text[i:min(i+76, len(text))])
	}
	return lines, nil
}

// around writes every line between before and after, and all between head and
// tail.
func around(head, before string, lines []string, after, tail string) string {
	var b strings.Builder
	b.WriteString(head)
	for _, l := range lines {
		b.WriteString(before + l + after + "\n")
	}
	return b.String() + tail
}
