package inventory

import (
	"archive/zip"
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/textproto"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/attest"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// Bounds of what is read of a jar.
const (
	jarDepth    = 3 // an ear has wars that have jars
	maxMember   = 1 << 20
	maxInnerJar = 1 << 30
)

// IsJar tells from its name whether a file is an archive of Java classes.
func IsJar(name string) bool {
	switch path.Ext(strings.ToLower(name)) {
	case ".jar", ".war", ".ear":
		return true
	}
	return false
}

// Jar lists what an archive of Java classes is, and what is packed into it:
// other jars, and the libraries whose classes were merged into its own. The
// coordinates are Maven's from pom.properties; a jar without them is known by
// its manifest or its name, and has no group. temp is for jars in jars that
// are too big for memory.
func Jar(name string, r io.ReaderAt, size int64, temp string) []attest.Component {
	return jar(name, r, size, temp, jarDepth)
}

func jar(name string, r io.ReaderAt, size int64, temp string, depth int) []attest.Component {
	own := attest.Component{Type: "generic", Integrity: integrity(r, size)}
	own.Name, own.Version = split(strings.TrimSuffix(name, path.Ext(name)))
	z, err := zip.NewReader(r, size)
	if err != nil {
		return []attest.Component{own}
	}
	var poms, inner []attest.Component
	manifest := textproto.MIMEHeader{}
	for _, f := range z.File {
		switch {
		case f.Name == "META-INF/MANIFEST.MF":
			manifest, _ = textproto.NewReader(bufio.NewReader(strings.NewReader(member(f)))).ReadMIMEHeader()
		case strings.HasPrefix(f.Name, "META-INF/maven/") && path.Base(f.Name) == "pom.properties":
			if c := pom(member(f)); c.Name != "" {
				poms = append(poms, c)
			}
		case IsJar(f.Name) && depth > 1:
			inner = append(inner, within(f, temp, depth-1)...)
		}
	}
	// Of several, the jar's own is the one that it is named after.
	i := slices.IndexFunc(poms, func(c attest.Component) bool {
		return strings.HasPrefix(name, c.Name+"-") || strings.HasPrefix(name, c.Name+".")
	})
	if i < 0 && len(poms) == 1 {
		i = 0
	}
	if i >= 0 {
		poms[i].Integrity = own.Integrity
		return append(poms, inner...)
	}
	own.Name = cmp.Or(own.Name, manifest.Get("Automatic-Module-Name"), manifest.Get("Implementation-Title"))
	own.Version = cmp.Or(own.Version, manifest.Get("Implementation-Version"), manifest.Get("Bundle-Version"))
	return append(append([]attest.Component{own}, poms...), inner...)
}

// within lists a jar in a jar.
func within(f *zip.File, temp string, depth int) []attest.Component {
	r, err := f.Open()
	if err != nil {
		return nil
	}
	defer r.Close()
	s := &layer.Spool{Dir: temp}
	defer s.Close()
	if n, err := io.Copy(s, io.LimitReader(r, maxInnerJar+1)); err != nil || n > maxInnerJar {
		return nil
	}
	return jar(path.Base(f.Name), s.Section(0, s.Len()), s.Len(), temp, depth)
}

// member is a small file of an archive; empty when it can't be read.
func member(f *zip.File) string {
	r, err := f.Open()
	if err != nil {
		return ""
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxMember))
	if err != nil {
		return ""
	}
	return string(data)
}

// pom reads pom.properties, as Maven's archiver writes it.
func pom(text string) attest.Component {
	c := attest.Component{Type: "maven"}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, "=")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "groupId":
			c.Namespace = value
		case "artifactId":
			c.Name = value
		case "version":
			c.Version = value
		}
	}
	if c.Namespace == "" || c.Version == "" {
		return attest.Component{}
	}
	return c
}

var versioned = regexp.MustCompile(`^(.+?)[-_](\d[^-]*(?:-.+)?)$`)

// split takes a version off a name: commons-io-2.11.0.
func split(stem string) (name, version string) {
	if m := versioned.FindStringSubmatch(stem); m != nil {
		return m[1], m[2]
	}
	return stem, ""
}

func integrity(r io.ReaderAt, size int64) string {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r, 0, size)); err != nil {
		return ""
	}
	return "sha256-" + base64.StdEncoding.EncodeToString(h.Sum(nil))
}
