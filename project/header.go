package project

import "strings"

// Header is the frozen few fields that are readable before any bundle is
// known, so that a file can be written for a platform newer than the runner.
type Header struct {
	Version int    // 0 when the file does not say
	Service string // required
	Tier    Tier   // empty when the file does not say, or says a tier unknown here
	Channel string // stable when the file does not say
}

// ParseHeader reads the frozen fields of faas.yml and ignores everything
// else, so that a key of a later version stops nobody. Its error is
// [Problems]: the file is no YAML map, or has no usable service name.
func ParseHeader(data []byte) (Header, error) { return Read(data).Header() }

// File is a faas.yml that was read as YAML, for [File.Header] and
// [File.Parse]: a large file takes a while.
type File struct {
	root     *node // nil with problems that leave nothing to read
	problems Problems
}

// Read reads faas.yml. What is wrong with it, Header and Parse say.
func Read(data []byte) File {
	root, problems := read(data)
	return File{root, problems}
}

// Header is [ParseHeader] of a file that was read.
func (f File) Header() (Header, error) {
	root := f.root
	if root == nil {
		return Header{}, f.problems
	}
	h := Header{Version: root.get("version").int(), Channel: "stable"}
	if c := root.at("platform", "channel"); c.has() && c.kind == aText {
		h.Channel = c.text
	}
	if t := Tier(root.at("service", "tier").str()); t.Rank() > 0 {
		h.Tier = t
	}
	name := root.get("service")
	path := "service"
	if name != nil && name.kind == aMap {
		name, path = name.get("name"), "service.name"
	}
	switch {
	case !name.has() || name.kind != aText || strings.TrimSpace(name.text) == "":
		at := root
		if name != nil {
			at = name
		}
		return h, Problems{{at.line, at.col, path, CodeRequired, "the service has no name", "write service: a name of lower-case letters, digits and -"}}
	default:
		h.Service = name.text
		if why, next := labelProblem("service", name.text, maxServiceName); why != "" {
			return h, Problems{{name.line, name.col, path, CodeName, why, next}}
		}
	}
	return h, nil
}
