// Package runtimes is the contract between the platform and the adapters that
// run inside function images: the handler table, and the adapters' sources.
//
// It is a leaf: it knows nothing of images, clusters or CI.
package runtimes

import (
	"embed"
	"fmt"
	"regexp"
	"strings"
)

// Adapters holds the source trees of the adapters, one folder per language:
// what ships, so neither tests nor notes for people.
//
// A platform bundle may add node/platform.json, {"mark": "word"}; the adapter
// then answers every request with the header x-faas-platform: word.
//
//go:embed node/main.js node/package.json node/lib
var Adapters embed.FS

var exportName = regexp.MustCompile(`^[A-Za-z_$][\w$]*$`)

// NodeHandler splits a Node.js handler, path/file.export, into the files it
// may name, in the order the adapter tries them, and the export. Paths are
// relative to the working directory. The adapter does the same in
// node/lib/unit.js; testdata/handlers.json keeps the two equal.
func NodeHandler(handler string) (files []string, export string, err error) {
	dot := strings.LastIndexByte(handler, '.')
	if dot <= 0 || handler[dot-1] == '/' || !exportName.MatchString(handler[dot+1:]) {
		return nil, "", fmt.Errorf("%q is not of the form path/file.export", handler)
	}
	base := handler[:dot]
	below := !strings.HasPrefix(base, "/") && !strings.Contains(base, `\`)
	for _, part := range strings.Split(base, "/") {
		below = below && part != ".."
	}
	if !below {
		return nil, "", fmt.Errorf("%q must be a path below the function's folder", handler)
	}
	for _, ext := range []string{".js", ".cjs", ".mjs", "/index.js"} {
		files = append(files, base+ext)
	}
	return files, handler[dot+1:], nil
}

// Unit is the handler table of one deploy unit. The adapter reads it as JSON
// from the environment variable FAAS_UNIT. Aggregating functions is a longer
// table, nothing else.
type Unit struct {
	Name      string     `json:"name"`
	Functions []Function `json:"functions"`
}

// Function is one row of the table.
type Function struct {
	Name     string `json:"name"`
	Handler  string `json:"handler"`  // path/file.export, relative to the working directory
	Contract string `json:"contract"` // event, http, web, cloudevent, app; an adapter refuses those it lacks
	// TimeoutMs is the time a request may take, in milliseconds.
	TimeoutMs int64 `json:"timeoutMs,omitempty"`
	// Concurrency is how many calls of this function one instance runs at
	// once; more wait. 0 is no limit.
	Concurrency int `json:"concurrency,omitempty"`
	// Environment joins the variables of the one process; the adapter refuses
	// a unit whose functions disagree on one.
	Environment map[string]string `json:"environment,omitempty"`
	Routes      []Route           `json:"routes,omitempty"`
	// Job says that the function is a job: alone in its unit, called once per
	// process, with no port; see node/README.md for what it is told. Its
	// TimeoutMs is the whole run's, 0 for no limit.
	Job *Job `json:"job,omitempty"`
}

// Job is what a job is told about its run: how many processes must end well,
// and how many of them run at once.
type Job struct {
	Completions int `json:"completions"`
	Parallelism int `json:"parallelism"`
}

// Route sends requests to a function. Path is as in faas.yml, with the base
// path in front: /a/[id] for one segment, /a/* for everything below /a but not
// /a itself. Methods is empty for any; HEAD goes where GET goes. The more
// literal path wins, segment by segment from the left.
type Route struct {
	Path    string   `json:"path"`
	Methods []string `json:"methods,omitempty"`
	// TimeoutMs overrides the function's for this route; 0 does not.
	TimeoutMs int64 `json:"timeoutMs,omitempty"`
}
