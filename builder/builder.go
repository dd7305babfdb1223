// Package builder turns a [Request] into an [Image] by digest, without a
// daemon.
//
// Same request, same digest: on any machine, under any umask, in any folder.
// An engine does the work; which one is decided in the plan, not here.
package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder/attest"
)

// Engine builds images. Implementations are safe for concurrent use.
type Engine interface {
	// Build makes req's image, pushes it to req.Repository and returns it by
	// digest. Building what exists already is cheap and returns the same digest.
	//
	// Errors: [*InputError] when the request's own content is wrong (the
	// developer can act); [*Unavailable] when a registry or package source
	// did not answer (a later try may help); [ErrDenied] and [ErrNoBase] in
	// the chain; ctx's cause.
	// Nothing half-pushed is ever tagged.
	Build(ctx context.Context, req Request) (Image, error)
}

// Request is everything an image is made of. It holds no credentials and no
// secrets: those belong to the engine.
type Request struct {
	// Name is the image's short name, unique in its project: "nodejs18".
	Name string
	// Key is the input key from the plan: equal keys, equal images. It is
	// recorded as a tag, so that an unchanged image costs one request.
	Key string
	// Repository receives the image.
	Repository name.Repository
	// Base is the image below everything else.
	Base name.Digest
	// For is the base that everything above was made for, where Base is
	// another one: both need the same abi label. nil takes any Base.
	For *name.Digest
	// BuiltIn are images of one layer each that come on the base in order;
	// each was made for that very base, as its label [LabelLayerBase] says.
	BuiltIn []name.Digest
	// Layers are trees placed on them in order: adapter, plugins.
	Layers []Tree
	// Dependencies is nil when the project has none.
	Dependencies *Dependencies
	// Code is the developer's files; without FS there are none.
	Code Tree
	// Config is what the image says about running itself.
	Config Config
	// Dockerfile, when set, replaces everything but Repository, Key and Code:
	// an engine that executes Dockerfiles builds it with Code as its context.
	Dockerfile *Dockerfile
	// Secrets are names of what installers and instructions may use: the engine
	// has the values. The names are part of keys, the values never are.
	Secrets []string
	// Made is what is known of the packages in a Base that instructions made.
	Made *Made
	// Origin is who had the image made and of what. When it is set, a new
	// image gets a bill of materials and provenance beside it. No part of it
	// enters the image or its key.
	Origin *attest.Provenance
}

// Tree is a set of files put at Prefix. Paths lists the files of FS that take
// part, in any order; nil means all of them.
type Tree struct {
	Title  string // for people: "adapter", "code"
	FS     fs.FS
	Prefix string // absolute folder in the image
	Paths  []string
}

// Config is the part of the image's configuration that we decide.
type Config struct {
	WorkingDir string            `json:"workingDir,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"`  // KEY=value, appended to the base's
	User       string            `json:"user,omitempty"` // uid:gid; "" keeps the base's when that is a number other than 0
	Labels     map[string]string `json:"labels,omitempty"`
}

// Kinds of [Dependencies].
const (
	KindNPM  = "npm"
	KindPNPM = "pnpm"
	KindYarn = "yarn"
	KindPip  = "pip"
)

// Dependencies names the lock file that decides the dependency layer.
type Dependencies struct {
	Kind string // KindNPM, KindPNPM, KindYarn, KindPip
	// FS holds Manifest (package.json; pip has none) and Lock
	// (package-lock.json, pnpm-lock.yaml, yarn.lock, requirements.txt).
	FS             fs.FS
	Manifest, Lock string
	// Prefix is the folder in the image that node_modules goes into, or that
	// Python's lib and bin are in (/usr/local).
	Prefix string
	// ABI is the base image's label, which Python's wheels are chosen by.
	ABI string
	// Build is the build image that installers run in; without one they run in
	// the job container. It is part of the layer's key: what is compiled in it
	// fits it.
	Build name.Digest
	// Registry is the package registry's base URL, from bundle or machine;
	// never part of a key, because integrity decides the content.
	Registry string
}

// Dockerfile is a build by instructions.
type Dockerfile struct {
	// FS holds Path: the project's tree or the bundle's.
	FS   fs.FS
	Path string
	Args map[string]string
	// Env are variables of its commands that say where packages come from. They
	// are part of no key and no image.
	Env []string
	// Cache are repositories with what instructions made before.
	Cache Cache
}

// Made is what is known of the packages in an image that instructions made.
type Made struct {
	// From is the image that they stand on; nil for none.
	From     *name.Digest
	Packages []attest.Component
	// Debian says that Packages have all of Debian's that are in the image,
	// those of From as well.
	Debian  bool
	Unknown []string // phrases about what could not be read
}

// Cache names repositories that keep layers by what they are made from. What
// is in one can't be checked against the instructions that it claims to come
// from: whoever may write to it decides what later builds contain. So one that
// protected refs read has to be written by protected refs alone.
type Cache struct {
	Read  []name.Repository // asked in order
	Write *name.Repository  // nil for none
}

// Image is what was built: a reference by digest, and how it came to be.
type Image struct {
	Name   string      `json:"name"`
	Ref    name.Digest `json:"-"`
	Key    string      `json:"key"`
	Engine string      `json:"engine"`
	Reused bool        `json:"reused"` // nothing was built or pushed
	Layers []Layer     `json:"layers,omitempty"`
	// Requests to the registry, and bytes sent to it.
	Requests int   `json:"requests"`
	Uploaded int64 `json:"uploaded"`
	// Sandbox is where foreign commands ran: of the layer engine's installers
	// SandboxNamespaces or SandboxNone, of a Dockerfile's instructions root or
	// userns; empty when none ran. BuildImage is the digest of the image that
	// was their root, Unboxed why there was none.
	Sandbox    string `json:"sandbox,omitempty"`
	BuildImage string `json:"buildImage,omitempty"`
	Unboxed    string `json:"unboxed,omitempty"`
	// Made are the packages in an image that instructions made, for a request
	// with an origin; nil when the image was found.
	Made *Made `json:"-"`
	// Referrers are what was stored beside a new image.
	Referrers []Referrer `json:"referrers,omitempty"`
	// Warnings are for people: what was left out and why.
	Warnings []string `json:"warnings,omitempty"`
}

// Referrer is a document about an image, stored beside it.
type Referrer struct {
	Predicate string `json:"predicate"` // what it says: a URI
	Digest    string `json:"digest"`    // of its manifest
	Signed    bool   `json:"signed"`
}

// Layer is one layer of an image, for the table at the end of the log.
type Layer struct {
	Title  string `json:"title"` // base, adapter, dependencies, code
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // compressed bytes
	Reused bool   `json:"reused"`
	// Took is how long it took to make and to bring to its place; zero when
	// nothing was done.
	Took time.Duration `json:"took,omitempty"`
}

// ErrDenied is in the chain when a registry refuses the credentials, or there
// are none for it.
var ErrDenied = errors.New("access denied")

// ErrNoBase is in the chain when the base image, or a part of it, is not where
// the request says.
var ErrNoBase = errors.New("the base image is not there")

// InputError is a request that can't be built because of its own content: a
// lock file out of step, a file that vanished, a failing build command.
type InputError struct {
	What string // "package-lock.json is out of step with package.json"
	Next string // what the developer can do
	Err  error
}

func (e *InputError) Error() string {
	if e.Err != nil {
		return e.What + ": " + e.Err.Error()
	}
	return e.What
}

func (e *InputError) Unwrap() error { return e.Err }

// Unavailable is a registry or package source that did not do its part; a
// later try may help.
type Unavailable struct {
	Op       string // "push registry.example/team/app"
	Host     string
	Attempts int
	Err      error
}

func (e *Unavailable) Error() string {
	s := e.Op + ": " + e.Host
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Attempts > 1 {
		s += fmt.Sprintf(" (tried %d times)", e.Attempts)
	}
	return s
}

func (e *Unavailable) Unwrap() error { return e.Err }
