package kaniko

import (
	"io/fs"
	"path"
	"strings"
)

// maxReported bounds what one source may say.
const maxReported = 5

// Check looks at the context that the target copies from, without reading a
// file: every source is there, and no way to it leads out through a link.
// paths and fsys are those of [Source]; dockerfile is the Dockerfile's path.
// The error is [Problems], or says what can't be read.
func (d *Dockerfile) Check(fsys fs.FS, paths []string, dockerfile string) error {
	found, err := walkContext(nil, fsys, paths, dockerfile)
	if err != nil {
		return err
	}
	if all := d.check(found, fsys); len(all) > 0 {
		return all
	}
	return nil
}

// check is Check for a context that was listed; fsys, when not nil, helps to
// say why a file is missing.
func (d *Dockerfile) check(found files, fsys fs.FS) (all Problems) {
	for _, s := range d.stages {
		if !s.needed {
			continue
		}
		for _, st := range s.steps {
			verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(st.title)), " ")
			for i, src := range st.sources {
				for _, text := range found.source(src, fsys) {
					all = append(all, Problem{Line: st.line, Column: st.column[i], Rule: "CopySource", Text: verb + " " + text})
				}
			}
		}
	}
	all.sort()
	return all
}

// source says what is wrong with a source of a COPY.
func (f files) source(src string, fsys fs.FS) (problems []string) {
	if src == "." {
		return nil
	}
	if strings.ContainsAny(src, "*?[\\") {
		if _, err := path.Match(src, ""); err != nil {
			return []string{src + ": " + err.Error()}
		}
		n := 0
		for name := range f {
			if ok, _ := path.Match(src, name); !ok {
				continue
			}
			n++
			if _, why := f.follow(name); why != "" && len(problems) < maxReported {
				problems = append(problems, name+why)
			}
		}
		if n == 0 && !f.throughLink(src) {
			return []string{src + ": no file matches"}
		}
		return problems
	}
	to, why := f.follow(src)
	if why != "" {
		return []string{src + why}
	}
	if _, ok := f[to]; ok || to == "." {
		return nil
	}
	why = ": not in the build context"
	if fsys != nil {
		if _, err := fs.Lstat(fsys, src); err == nil {
			why = ": left out of the build context, by .dockerignore, .gitignore or package in faas.yml"
		}
	}
	return []string{src + why}
}

// throughLink says whether a pattern's beginning is a link: then only the
// executor can tell what it matches.
func (f files) throughLink(pattern string) bool {
	for dir := path.Dir(pattern); dir != "."; dir = path.Dir(dir) {
		if f[dir].kind == "link" {
			return true
		}
	}
	return false
}

// follow is what name is in the end, after every link on the way; why is not
// empty when one leads out of the context or nowhere.
func (f files) follow(name string) (to, why string) {
	const most = 40 // as many links as Linux follows
	for links := 0; ; links++ {
		at, rest := "", name
		changed := false
		for rest != "" {
			var part string
			part, rest, _ = strings.Cut(rest, "/")
			at = path.Join(at, part)
			e := f[at]
			if e.kind != "link" {
				continue
			}
			target := path.Join(path.Dir(at), e.what)
			if path.IsAbs(e.what) || target == ".." || strings.HasPrefix(target, "../") {
				return "", " leaves the build context through the symbolic link " + at + " -> " + e.what
			}
			name, changed = path.Join(target, rest), true
			break
		}
		if !changed {
			return name, ""
		}
		if links == most {
			return "", ": too many symbolic links"
		}
	}
}
