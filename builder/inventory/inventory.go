// Package inventory finds the packages in an image's files by what the
// programs that install them leave behind: dpkg's list, npm's package.json,
// Python's METADATA, Maven's pom.properties.
package inventory

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/textproto"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Contents is what a layer, or several, say about packages.
type Contents struct {
	// Files are the packages by the file that names them. A file that could
	// name some and does not is here too: it may hide one that did.
	Files map[string][]attest.Component `json:"files,omitempty"`
	// Removed are paths that the layer takes away from those below, with all
	// that is in them.
	Removed []string `json:"removed,omitempty"`
	// Unknown are phrases about packages that can't be read here.
	Unknown []string `json:"unknown,omitempty"`
}

// Version changes when another version of this package would find something
// else.
const Version = "1"

const (
	dpkgStatus = "var/lib/dpkg/status"
	dpkgFolder = "var/lib/dpkg/status.d" // images that were made without dpkg
)

// maxDocument is more than an honest list or package.json has.
const maxDocument = 32 << 20

// Layer reads a layer's tar stream. temp is for archives that are too big for
// memory; "" is the system's folder.
func Layer(r io.Reader, temp string) (Contents, error) {
	c := Contents{Files: map[string][]attest.Component{}}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			return c, nil
		}
		if err != nil {
			return Contents{}, fmt.Errorf("inventory: read a layer: %w", err)
		}
		if err := c.entry(h, t, temp); err != nil {
			return Contents{}, fmt.Errorf("inventory: %s: %w", h.Name, err)
		}
	}
}

func (c *Contents) entry(h *tar.Header, body io.Reader, temp string) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	dir, file := path.Split(name)
	if file == ".wh..wh..opq" {
		c.Removed = append(c.Removed, path.Clean(dir))
		return nil
	}
	if gone, ok := strings.CutPrefix(file, ".wh."); ok {
		c.Removed = append(c.Removed, path.Join(dir, gone))
		return nil
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	switch {
	case name == "lib/apk/db/installed":
		c.Unknown = append(c.Unknown, "packages that apk installed")
		return nil
	case path.Dir(name) == "var/lib/rpm", path.Dir(name) == "usr/lib/sysimage/rpm":
		c.Unknown = append(c.Unknown, "packages that rpm installed")
		return nil
	case IsJar(name):
		s := &layer.Spool{Dir: temp}
		defer s.Close()
		if _, err := io.Copy(s, body); err != nil {
			return err
		}
		c.Files[name] = Jar(path.Base(name), s.Section(0, s.Len()), s.Len(), temp)
		return nil
	}
	read := reader(name)
	if read == nil {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(body, maxDocument+1))
	if err != nil {
		return err
	}
	c.Files[name] = nil
	if len(data) <= maxDocument {
		c.Files[name] = read(data)
	}
	return nil
}

// reader is how a file of that name is read; nil when it names no package.
func reader(name string) func([]byte) []attest.Component {
	dir, file := path.Split(name)
	dir = path.Clean(dir)
	switch {
	case name == dpkgStatus, dir == dpkgFolder && path.Ext(file) == "":
		return dpkg
	case file == "package.json" && inNodeModules(dir):
		return packageJSON
	case file == "METADATA" && path.Ext(dir) == ".dist-info", file == "PKG-INFO" && path.Ext(dir) == ".egg-info":
		return metadata
	}
	return nil
}

// inNodeModules tells whether dir is a package's own: node_modules/name or
// node_modules/@scope/name.
func inNodeModules(dir string) bool {
	up := path.Dir(dir)
	if strings.HasPrefix(path.Base(up), "@") {
		up = path.Dir(up)
	}
	return path.Base(up) == "node_modules"
}

func packageJSON(data []byte) []attest.Component {
	var p struct{ Name, Version string }
	if json.Unmarshal(data, &p) != nil || p.Name == "" || p.Version == "" {
		return nil
	}
	scope, short, ok := strings.Cut(p.Name, "/")
	if !ok {
		scope, short = "", p.Name
	}
	return []attest.Component{{Type: "npm", Namespace: scope, Name: short, Version: p.Version}}
}

var dashes = regexp.MustCompile(`[-_.]+`)

func metadata(data []byte) []attest.Component {
	// Of what is no list of fields to its end, those before count.
	h, _ := textproto.NewReader(bufio.NewReader(bytes.NewReader(data))).ReadMIMEHeader()
	name, version := h.Get("Name"), h.Get("Version")
	if name == "" || version == "" {
		return nil
	}
	return []attest.Component{{Type: "pypi", Name: strings.ToLower(dashes.ReplaceAllString(name, "-")), Version: version}}
}

func dpkg(data []byte) []attest.Component {
	var all []attest.Component
	r := textproto.NewReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		h, err := r.ReadMIMEHeader()
		status := h.Get("Status") // none where each package has a file
		if h.Get("Package") != "" && (status == "" || strings.HasSuffix(status, " installed")) {
			vendor := "debian"
			if strings.Contains(h.Get("Maintainer"), "ubuntu.com") {
				vendor = "ubuntu"
			}
			all = append(all, attest.Component{Type: "deb", Namespace: vendor, Name: h.Get("Package"), Version: h.Get("Version"), Arch: h.Get("Architecture")})
		}
		if err != nil {
			return all
		}
	}
}

// Over is what is there when upper lies on c.
func (c Contents) Over(upper Contents) Contents {
	out := Contents{Files: maps.Clone(c.Files), Unknown: append(slices.Clone(c.Unknown), upper.Unknown...)}
	if out.Files == nil {
		out.Files = map[string][]attest.Component{}
	}
	for _, gone := range upper.Removed {
		maps.DeleteFunc(out.Files, func(f string, _ []attest.Component) bool {
			return f == gone || strings.HasPrefix(f, gone+"/") || gone == "."
		})
	}
	maps.Copy(out.Files, upper.Files)
	return out
}

// Components lists the packages, and tells whether Debian's are among them as
// dpkg itself lists them: then all that the image has.
func (c Contents) Components() (all []attest.Component, debian bool) {
	for _, f := range slices.Sorted(maps.Keys(c.Files)) {
		all = append(all, c.Files[f]...)
	}
	_, debian = c.Files[dpkgStatus]
	return all, debian
}
