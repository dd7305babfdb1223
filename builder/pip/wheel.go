package pip

import (
	"archive/zip"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	version "github.com/aquasecurity/go-pep440-version"

	"github.com/kuroko-faas/kuroko/builder/fetch"
)

// installed is one file of a wheel where it is installed, relative to the
// image's root. Content is in the wheel or, when generated or changed, here.
type installed struct {
	place string
	exec  bool
	file  *zip.File
	data  []byte
}

func (i installed) open() (io.ReadCloser, int64, error) {
	if i.file == nil {
		return io.NopCloser(bytes.NewReader(i.data)), int64(len(i.data)), nil
	}
	r, err := i.file.Open()
	return r, int64(i.file.UncompressedSize64), err
}

// dist is an opened wheel.
type dist struct {
	requirement Requirement
	files       []installed // sorted by place
	requires    []string    // Requires-Dist
	size        int64
}

// interpreter is what scripts start with in the base images.
const interpreter = "/usr/bin/python3"

// Library is where Debian's Python finds what administrators install, below
// the prefix.
func Library(p Platform) string {
	return path.Join("lib", fmt.Sprintf("python3.%d", p.Minor), "dist-packages")
}

func site(p Platform, prefix string) string { return path.Join(prefix, Library(p)) }

// open reads a wheel and decides where its files go, as pip does. Errors are
// [fetch.ErrHostile], [*NeedsInstallerError], or that it is no wheel.
func open(r Requirement, archive *io.SectionReader, p Platform, prefix string, limits fetch.Limits) (*dist, error) {
	z, err := zip.NewReader(archive, archive.Size())
	if err != nil {
		return nil, fmt.Errorf("it is no wheel: %w", err)
	}
	d := &dist{requirement: r}
	lib := strings.TrimPrefix(site(p, prefix), "/")
	info := ""
	all := map[string]*zip.File{}
	var order []*zip.File
	for _, f := range z.File {
		name := f.Name
		if strings.HasSuffix(name, "/") {
			continue
		}
		switch mode := f.Mode(); {
		case len(all) >= limits.Files:
			return nil, fmt.Errorf("%w: more than %d files", fetch.ErrHostile, limits.Files)
		case !fs.ValidPath(name) || !utf8.ValidString(name) || strings.Contains(name, `\`) || strings.ContainsRune(name, 0):
			return nil, fmt.Errorf("%w: the name %q leaves its folder or is none", fetch.ErrHostile, name)
		case mode.Type() != 0:
			return nil, fmt.Errorf("%w: %s is a link or a special file", fetch.ErrHostile, name)
		case f.UncompressedSize64 > uint64(limits.Package):
			return nil, fmt.Errorf("%w: %s has more than %d bytes", fetch.ErrHostile, name, limits.Package)
		}
		if d.size += int64(f.UncompressedSize64); d.size > limits.Package {
			return nil, fmt.Errorf("%w: it unpacks to more than %d bytes", fetch.ErrHostile, limits.Package)
		}
		if all[name] != nil {
			return nil, fmt.Errorf("%w: %s is in it twice", fetch.ErrHostile, name)
		}
		all[name] = f
		order = append(order, f)
		if top, rest, ok := strings.Cut(name, "/"); ok && rest == "METADATA" && strings.HasSuffix(top, ".dist-info") {
			if info != "" {
				return nil, errors.New("it has two .dist-info folders")
			}
			info = top
		}
	}
	read := func(name string) ([]byte, error) {
		f := all[info+"/"+name]
		if f == nil || info == "" {
			return nil, fmt.Errorf("it has no .dist-info/%s", name)
		}
		return readAll(f, limits.Document)
	}
	metadata, err := read("METADATA")
	if err != nil {
		return nil, err
	}
	if err := d.identify(metadata, info); err != nil {
		return nil, err
	}
	if wheel, err := read("WHEEL"); err != nil {
		return nil, err
	} else if v := header(wheel, "Wheel-Version"); len(v) != 1 || !strings.HasPrefix(v[0], "1.") {
		return nil, needs("%s has wheel version %v", r.ID(), v)
	}
	record, err := read("RECORD")
	if err != nil {
		return nil, err
	}
	var points []byte
	if all[info+"/entry_points.txt"] != nil {
		if points, err = read("entry_points.txt"); err != nil {
			return nil, err
		}
	}
	scripts, err := entryPoints(points, p)
	if err != nil {
		return nil, fmt.Errorf("entry_points.txt: %w", err)
	}
	bin := strings.TrimPrefix(path.Join(prefix, "bin"), "/")
	moved := map[string]string{} // place by name in the wheel
	for _, f := range order {
		if f.Name == info+"/RECORD" {
			moved[f.Name] = path.Join(lib, f.Name)
			continue
		}
		i := installed{place: path.Join(lib, f.Name), file: f, exec: f.Mode()&0o111 != 0}
		if top, rest, _ := strings.Cut(f.Name, "/"); strings.HasSuffix(top, ".data") {
			kind, sub, ok := strings.Cut(rest, "/")
			if !ok {
				return nil, fmt.Errorf("%s is in no folder of its .data", f.Name)
			}
			switch kind {
			case "purelib", "platlib":
				i.place = path.Join(lib, sub)
			case "data":
				i.place = strings.TrimPrefix(path.Join(prefix, sub), "/")
			case "scripts":
				if _, wrapper := scripts[strings.TrimSuffix(strings.TrimSuffix(path.Base(sub), ".exe"), "-script.py")]; wrapper {
					continue
				}
				i.place = path.Join(bin, sub)
				if err := i.script(limits.Document); err != nil {
					return nil, err
				}
			default:
				return nil, needs("%s installs files of kind %s", r.ID(), kind)
			}
		}
		moved[f.Name] = i.place
		d.files = append(d.files, i)
	}
	var generated []installed
	for _, name := range sorted(scripts) {
		generated = append(generated, installed{place: path.Join(bin, name), exec: true, data: scripts[name]})
	}
	generated = append(generated, installed{place: path.Join(lib, info, "INSTALLER"), data: []byte("pip\n")},
		installed{place: path.Join(lib, info, "REQUESTED")})
	list, err := recordOf(record, d.files, generated, moved, lib)
	if err != nil {
		return nil, fmt.Errorf("RECORD: %w", err)
	}
	d.files = append(append(d.files, generated...), installed{place: path.Join(lib, info, "RECORD"), data: list})
	// What pip writes last stays.
	seen := map[string]bool{}
	for n := len(d.files) - 1; n >= 0; n-- {
		if seen[d.files[n].place] {
			d.files = slices.Delete(d.files, n, n+1)
			continue
		}
		seen[d.files[n].place] = true
	}
	slices.SortFunc(d.files, func(a, b installed) int { return strings.Compare(a.place, b.place) })
	return d, nil
}

// identify holds the wheel's own name and version against what was asked for.
func (d *dist) identify(metadata []byte, info string) error {
	name, v := header(metadata, "Name"), header(metadata, "Version")
	if len(name) != 1 || len(v) != 1 || normalize(name[0]) != d.requirement.Name || !sameVersion(v[0], d.requirement.Version) {
		return fmt.Errorf("it says it is %s", strings.Join(append(name, v...), " "))
	}
	own, _, _ := strings.Cut(info, "-")
	if normalize(own) != d.requirement.Name {
		return fmt.Errorf("its metadata is in %s", info)
	}
	d.requires = header(metadata, "Requires-Dist")
	return nil
}

// header are the values of a field in metadata in the form of a mail's head.
func header(text []byte, field string) []string {
	var all []string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if s.Text() == "" {
			break
		}
		key, value, ok := strings.Cut(s.Text(), ":")
		if ok && strings.EqualFold(key, field) {
			all = append(all, strings.TrimSpace(value))
		}
	}
	return all
}

func readAll(f *zip.File, limit int64) ([]byte, error) {
	if f.UncompressedSize64 > uint64(limit) {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", fetch.ErrHostile, f.Name, limit)
	}
	r, err := f.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	return data, nil
}

// script gives a script of the wheel its first line, as pip does: "#!python"
// stands for the interpreter.
func (i *installed) script(limit int64) error {
	r, err := i.file.Open()
	if err != nil {
		return fmt.Errorf("%s: %w", i.file.Name, err)
	}
	head := make([]byte, len("#!python"))
	_, err = io.ReadFull(r, head)
	r.Close()
	if err != nil || string(head) != "#!python" {
		return nil
	}
	data, err := readAll(i.file, limit)
	if err != nil {
		return err
	}
	_, rest, _ := bytes.Cut(data, []byte("\n"))
	i.data = append([]byte("#!"+interpreter+"\n"), rest...)
	i.file = nil
	return nil
}

var (
	entryPoint = regexp.MustCompile(`^([A-Za-z_][\w.]*)\s*:\s*([A-Za-z_][\w.]*)\s*(\[.*\])?$`)
	scriptName = regexp.MustCompile(`^[\w.-]+$`)
	pipScript  = regexp.MustCompile(`^pip(\d+(\.\d+)?)?$`)
	easyScript = regexp.MustCompile(`^easy_install(-\d+\.\d+)?$`)
)

// entryPoints are the scripts that pip generates, by name.
func entryPoints(text []byte, p Platform) (map[string][]byte, error) {
	points := map[string]string{}
	section := ""
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "", strings.HasPrefix(line, "#"), strings.HasPrefix(line, ";"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = strings.TrimSpace(line[1 : len(line)-1])
		case section == "console_scripts" || section == "gui_scripts":
			name, value, ok := strings.Cut(line, "=")
			if !ok {
				return nil, fmt.Errorf("%q is no entry point", line)
			}
			points[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	// pip gives itself and setuptools the names of the Python at hand.
	rename := func(own string, versioned *regexp.Regexp, names ...string) {
		value, ok := points[own]
		if !ok {
			return
		}
		for name := range points {
			if versioned.MatchString(name) {
				delete(points, name)
			}
		}
		for _, n := range names {
			points[n] = value
		}
	}
	rename("pip", pipScript, "pip", "pip3", fmt.Sprintf("pip3.%d", p.Minor))
	rename("easy_install", easyScript, "easy_install", fmt.Sprintf("easy_install-3.%d", p.Minor))
	scripts := map[string][]byte{}
	for name, value := range points {
		m := entryPoint.FindStringSubmatch(value)
		if m == nil || !scriptName.MatchString(name) || name == "." || name == ".." {
			return nil, fmt.Errorf("%q = %q is no script", name, value)
		}
		first, _, _ := strings.Cut(m[2], ".")
		scripts[name] = fmt.Appendf(nil, "#!%s\n# -*- coding: utf-8 -*-\nimport re\nimport sys\nfrom %s import %s\nif __name__ == '__main__':\n"+
			"    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])\n    sys.exit(%s())\n", interpreter, m[1], first, m[2])
	}
	return scripts, nil
}

// recordOf is the RECORD of the installed files, as pip writes it.
func recordOf(old []byte, files, generated []installed, moved map[string]string, lib string) ([]byte, error) {
	r := csv.NewReader(bytes.NewReader(old))
	r.FieldsPerRecord, r.LazyQuotes = -1, true
	rows, err := r.ReadAll()
	if err != nil {
		return nil, err
	}
	changed := map[string][]byte{}
	for _, f := range files {
		if f.file == nil {
			changed[f.place] = f.data
		}
	}
	relative := func(place string) (string, error) {
		rel, err := filepath.Rel("/"+lib, "/"+place)
		return filepath.ToSlash(rel), err
	}
	sum := func(data []byte) (string, string) {
		h := sha256.Sum256(data)
		return "sha256=" + base64.RawURLEncoding.EncodeToString(h[:]), strconv.Itoa(len(data))
	}
	left := map[string]string{}
	for name, place := range moved {
		left[name] = place
	}
	var out [][]string
	for _, row := range rows {
		if len(row) == 0 || row[0] == "" {
			continue
		}
		row = append(row, "", "")
		name, hash, size := row[0], row[1], row[2]
		if place, ok := left[row[0]]; ok {
			delete(left, row[0])
			if name, err = relative(place); err != nil {
				return nil, err
			}
			if data, ok := changed[place]; ok {
				hash, size = sum(data)
			}
		}
		out = append(out, []string{name, hash, size})
	}
	for _, g := range generated {
		name, err := relative(g.place)
		if err != nil {
			return nil, err
		}
		hash, size := sum(g.data)
		out = append(out, []string{name, hash, size})
	}
	for _, place := range left {
		name, err := relative(place)
		if err != nil {
			return nil, err
		}
		out = append(out, []string{name, "", ""})
	}
	slices.SortFunc(out, slices.Compare[[]string])
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	w.UseCRLF = true // as Python's csv module
	if err := w.WriteAll(out); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func sameVersion(a, b string) bool {
	x, err := version.Parse(a)
	y, err2 := version.Parse(b)
	if err != nil || err2 != nil {
		return a == b
	}
	return x.Equal(y)
}

func sorted[T any](m map[string]T) []string {
	all := make([]string, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
