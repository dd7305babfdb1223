// Package runtimes is the contract between the platform and the adapters that
// run inside function images: the handler table, and the adapters' sources.
//
// It is a leaf: it knows nothing of images, clusters or CI.
package runtimes

import "embed"

// Adapters holds the source trees of the adapters, one folder per language.
//
//go:embed node
var Adapters embed.FS

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
	Contract string `json:"contract"` // event, http, web, cloudevent, app
	// TimeoutMs is the time a request may take, in milliseconds.
	TimeoutMs   int64             `json:"timeoutMs,omitempty"`
	Concurrency int               `json:"concurrency,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	Routes      []Route           `json:"routes,omitempty"`
}

// Route sends requests to a function. Path is as in faas.yml, with the base
// path in front: /a/[id], /a/*. Methods is empty for any.
type Route struct {
	Path    string   `json:"path"`
	Methods []string `json:"methods,omitempty"`
	// TimeoutMs overrides the function's for this route; 0 does not.
	TimeoutMs int64 `json:"timeoutMs,omitempty"`
}
