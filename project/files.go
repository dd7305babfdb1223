package project

import (
	"slices"
	"strings"
)

// FileSets says which files of the repository belong to which unit.
//
// A unit has the files under its functions' source folders, and everything
// that is under no function's source. `package` narrows both.
type FileSets struct {
	// Shared belong to every unit, in the order given.
	Shared []string
	// Own are the files under each source folder. A file under two nested
	// folders is in both.
	Own map[string][]string
	// Left are the files that belong to no image: tests, documents, credentials,
	// what package leaves out.
	Left []string
}

// FileSets sorts paths, which are relative to the repository's root and use
// slashes. It takes time linear in their number, however many functions there
// are.
func (p *Project) FileSets(paths []string) FileSets {
	sets := FileSets{Own: map[string][]string{}}
	own := map[string]*[]string{}
	for _, f := range p.Functions {
		if f.Source != "" {
			own[f.Source] = new([]string)
		}
	}
	pack := p.Package.narrow()
	var in []*[]string // the sources around last, the folder of the file before
	last := "/"        // no folder is called so
	for _, file := range paths {
		if !pack.takes(file) {
			sets.Left = append(sets.Left, file)
			continue
		}
		dir := file[:max(0, strings.LastIndexByte(file, '/'))]
		if dir != last {
			last, in = dir, in[:0]
			for up := dir; up != ""; up = up[:max(0, strings.LastIndexByte(up, '/'))] {
				if source := own[up]; source != nil {
					in = append(in, source)
				}
			}
		}
		itself := own[file]
		if itself != nil {
			*itself = append(*itself, file)
		}
		for _, source := range in {
			*source = append(*source, file)
		}
		if itself == nil && len(in) == 0 {
			sets.Shared = append(sets.Shared, file)
		}
	}
	for dir, files := range own {
		sets.Own[dir] = *files
	}
	return sets
}

// Files are those of paths that belong to the unit, in the order given.
func (p *Project) Files(unit string, paths []string) []string {
	return p.FileSets(paths).Of(p, unit, paths)
}

// Of picks a unit's files out of the sets, in the order of paths.
func (s FileSets) Of(p *Project, unit string, paths []string) []string {
	in := map[string]bool{}
	for _, f := range s.Shared {
		in[f] = true
	}
	for _, u := range p.Units {
		if u.Name != unit {
			continue
		}
		for _, f := range u.Functions {
			for _, file := range s.Own[f.Source] {
				in[file] = true
			}
		}
	}
	var out []string
	for _, f := range paths {
		if in[f] {
			out = append(out, f)
		}
	}
	return out
}

// never enter an image, whatever package says: credentials, and what is made
// again anyway.
var never = []string{
	"**/.npmrc", "**/.yarnrc", "**/.yarnrc.yml", "**/.pypirc", "**/pip.conf", "**/.netrc", "**/.env", "**/.env.*",
	"**/id_rsa", "**/id_ed25519", "**/.ssh", "**/.docker", "**/.aws", "**/.git", ".faas", "**/node_modules",
}

// seldom are left out unless package.include names them: tests, documents,
// and what tools read in the repository.
var seldom = []string{
	"**/*.test.*", "**/*.spec.*", "**/*_test.py", "**/test_*.py", "**/__tests__", "**/__pycache__", "test", "tests", "src/test",
	"**/README*", "**/CHANGELOG*", "**/CONTRIBUTING*", "docs",
	"faas.yml", ".gitlab-ci.yml", ".gitlab", "**/.gitignore", "**/.gitattributes", "**/.editorconfig", "**/.DS_Store",
}

type narrowing struct {
	all           bool // no include
	include, deny *globs
}

func (k Package) narrow() narrowing {
	n := narrowing{all: len(k.Include) == 0, include: newGlobs(k.Include)}
	deny := slices.Concat(never, k.Exclude)
	if n.all {
		deny = append(deny, seldom...)
	}
	n.deny = newGlobs(deny)
	return n
}

func (n narrowing) takes(file string) bool {
	return (n.all || n.include.match(file)) && !n.deny.match(file)
}
