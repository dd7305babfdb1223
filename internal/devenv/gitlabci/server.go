package gitlabci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/internal/run"
)

// Server serves git projects to anybody on loopback, read-only.
// It is safe for concurrent use, except for adding the same project twice.
type Server struct {
	tools Tools
	repos string // bare repositories, path.git
	home  string // an empty HOME for git, so that nobody's settings matter
	http  *http.Server
	url   string
}

// NewServer starts a server that keeps its repositories below dir, which the
// caller removes after Close.
func NewServer(ctx context.Context, tools Tools, dir string) (*Server, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("gitlabci: %w", err)
	}
	s := &Server{tools: tools, repos: filepath.Join(dir, "repos"), home: filepath.Join(dir, "home")}
	for _, d := range []string{s.repos, s.home} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("gitlabci: %w", err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("gitlabci: listen: %w", err)
	}
	s.url = "http://" + l.Addr().String()
	s.http = &http.Server{
		Handler: &cgi.Handler{
			Path: tools.HTTPBackend,
			Root: "/",
			Env: []string{
				"GIT_PROJECT_ROOT=" + s.repos, "GIT_HTTP_EXPORT_ALL=1",
				"HOME=" + s.home, "GIT_CONFIG_NOSYSTEM=1",
			},
			Logger: log.New(io.Discard, "", 0),
			Stderr: io.Discard,
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	go s.http.Serve(l) // ends with Close
	return s, nil
}

// URL is the server's address, like http://127.0.0.1:4321.
func (s *Server) URL() string { return s.url }

// Close stops serving. The repositories stay.
func (s *Server) Close() error { return s.http.Close() }

// Project is the first commit of a new repository.
type Project struct {
	// Path is group/name.
	Path string
	// Files maps a folder in the repository ("." is its top) to a folder of
	// this machine whose files go there. What git would not track in a
	// checkout (.git, node_modules, .faas) stays behind.
	Files map[string]string
	// Branch is the default branch; "" is main.
	Branch string
	// Tags point at the commit.
	Tags []string
}

var projectPath = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)+$`)

// Add makes a project. The same files give the same commit on any machine.
func (s *Server) Add(ctx context.Context, p Project) error {
	if !projectPath.MatchString(p.Path) {
		return fmt.Errorf("gitlabci: project path %q is not group/name", p.Path)
	}
	branch := p.Branch
	if branch == "" {
		branch = "main"
	}
	bare := s.bare(p.Path)
	if _, err := os.Stat(bare); err == nil {
		return fmt.Errorf("gitlabci: project %s exists", p.Path)
	}
	tree, err := os.MkdirTemp(filepath.Dir(s.repos), "tree-")
	if err != nil {
		return fmt.Errorf("gitlabci: %w", err)
	}
	defer os.RemoveAll(tree)
	for to, from := range p.Files {
		if err := copyTree(filepath.Join(tree, to), from); err != nil {
			return fmt.Errorf("gitlabci: project %s: %w", p.Path, err)
		}
	}
	if err := s.git(ctx, tree, "init", "--quiet", "--initial-branch="+branch, "."); err != nil {
		return err
	}
	if err := s.commit(ctx, tree, "Add the project"); err != nil {
		return err
	}
	for _, tag := range p.Tags {
		if err := s.git(ctx, tree, "tag", tag); err != nil {
			return err
		}
	}
	if err := s.git(ctx, tree, "clone", "--quiet", "--bare", ".", bare); err != nil {
		return err
	}
	// gitlab-ci-local clones without trees and asks for single objects later.
	for _, key := range []string{"uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"} {
		if err := s.git(ctx, bare, "config", key, "true"); err != nil {
			return err
		}
	}
	return nil
}

// Clone checks out a branch of a project ("" is its default branch) into dir,
// over HTTP as a developer would. dir must not exist, and its path must hold
// no space, which gitlab-ci-local does not survive.
func (s *Server) Clone(ctx context.Context, project, branch, dir string) (*Checkout, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("gitlabci: %w", err)
	}
	if strings.ContainsAny(dir, " \t\n'\"$\\") {
		return nil, fmt.Errorf("gitlabci: folder %q: gitlab-ci-local needs a path without spaces and quotes", dir)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("gitlabci: %w", err)
	}
	args := []string{"clone", "--quiet"}
	if branch != "" {
		args = append(args, "--branch", branch)
	}
	if err := s.git(ctx, filepath.Dir(dir), append(args, s.url+"/"+project+".git", dir)...); err != nil {
		return nil, err
	}
	for _, kv := range [][2]string{{"user.name", "A Developer"}, {"user.email", "developer@example.com"}} {
		if err := s.git(ctx, dir, "config", kv[0], kv[1]); err != nil {
			return nil, err
		}
	}
	return &Checkout{Dir: dir, server: s, bare: s.bare(project)}, nil
}

func (s *Server) bare(project string) string {
	return filepath.Join(s.repos, filepath.FromSlash(project)+".git")
}

func (s *Server) commit(ctx context.Context, dir, message string) error {
	if err := s.git(ctx, dir, "add", "--all"); err != nil {
		return err
	}
	return s.git(ctx, dir, "commit", "--quiet", "--allow-empty", "--message", message)
}

func (s *Server) git(ctx context.Context, dir string, args ...string) error {
	_, err := s.gitOutput(ctx, dir, args...)
	return err
}

func (s *Server) gitOutput(ctx context.Context, dir string, args ...string) (string, error) {
	var out bytes.Buffer
	err := run.Command{Path: s.tools.Git, Args: args, Dir: dir, Env: s.gitEnv(), Stdout: &out}.Run(ctx)
	var exit *run.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("gitlabci: git %s: %w: %s", args[0], err, exit.Tail)
	}
	if err != nil {
		return "", fmt.Errorf("gitlabci: git %s: %w", args[0], err)
	}
	return strings.TrimSpace(out.String()), nil
}

// gitEnv is an identity and a date that never change, so commits don't either.
func (s *Server) gitEnv() []string {
	const date = "2024-01-01T00:00:00Z"
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=A Developer", "GIT_AUTHOR_EMAIL=developer@example.com", "GIT_AUTHOR_DATE=" + date,
		"GIT_COMMITTER_NAME=A Developer", "GIT_COMMITTER_EMAIL=developer@example.com", "GIT_COMMITTER_DATE=" + date,
	}
}

var untracked = []string{".git", "node_modules", ".faas", ".gitlab-ci-local"}

// copyTree copies regular files and links with their executable bit.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir() && path != from && slices.Contains(untracked, d.Name()):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is neither a file, a folder nor a link", path)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o644|info.Mode().Perm()&0o111)
	})
}
