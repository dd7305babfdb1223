package packages

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// distPackages is where Debian has Python's packages, of all of them together.
const distPackages = "usr/lib/python3/dist-packages/"

var (
	infoName   = regexp.MustCompile(`^([A-Za-z0-9._]+)-([0-9][A-Za-z0-9.+!]*)(?:-py3[0-9.]*)?\.(?:egg|dist)-info$`)
	separators = regexp.MustCompile(`[-_.]+`)
)

// wheels makes a wheel of every package in the archive, by what its
// description says that it consists of.
func wheels(files *tar.Reader, dir *os.Root) error {
	all := map[string][]byte{}
	err := each(files, func(h *tar.Header) error {
		name, ok := strings.CutPrefix(h.Name, distPackages)
		if !ok || h.Typeflag != tar.TypeReg || strings.Contains(name, "__pycache__/") {
			return nil
		}
		data, err := io.ReadAll(files)
		all[name] = data
		return err
	})
	if err != nil {
		return err
	}
	infos := map[string]bool{}
	for name := range all {
		top, _, _ := strings.Cut(name, "/")
		if infoName.MatchString(top) {
			infos[top] = true
		}
	}
	for info := range infos {
		name, data, err := wheel(info, all)
		if err != nil {
			return fmt.Errorf("%s: %w", info, err)
		}
		if name == "" {
			continue
		}
		if err := dir.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// wheel makes one; the name is empty where the description doesn't lead to any
// files.
func wheel(info string, all map[string][]byte) (string, []byte, error) {
	m := infoName.FindStringSubmatch(info)
	name, version := strings.ToLower(separators.ReplaceAllString(m[1], "_")), m[2]
	tops := strings.Fields(string(all[info+"/top_level.txt"]))
	if len(tops) == 0 {
		tops = []string{name}
	}
	content := map[string][]byte{}
	tag := "py3-none-any"
	for file, data := range all {
		top, rest, below := strings.Cut(file, "/")
		module, _, _ := strings.Cut(top, ".")
		if !slices.Contains(tops, top) && !(!below && rest == "" && slices.Contains(tops, module)) {
			continue
		}
		content[file] = data
		if path.Ext(file) == ".so" {
			tag = "cp311-cp311-linux_x86_64"
		}
	}
	if len(content) == 0 {
		return "", nil, nil
	}
	// What it requires is left out: all versions are Debian's, which fit each
	// other although the ranges in some descriptions do not.
	to := name + "-" + version + ".dist-info/"
	content[to+"METADATA"] = []byte("Metadata-Version: 2.1\nName: " + m[1] + "\nVersion: " + version + "\n")
	content[to+"WHEEL"] = []byte("Wheel-Version: 1.0\nGenerator: kuroko-bench\nRoot-Is-Purelib: " + fmt.Sprint(tag == "py3-none-any") + "\nTag: " + tag + "\n")
	if e := all[info+"/entry_points.txt"]; e != nil {
		content[to+"entry_points.txt"] = e
	}
	var names []string
	for n := range content {
		names = append(names, n)
	}
	slices.Sort(names)
	var record strings.Builder
	for _, n := range names {
		sum := sha256.Sum256(content[n])
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", n, base64.RawURLEncoding.EncodeToString(sum[:]), len(content[n]))
	}
	record.WriteString(to + "RECORD,,\n")
	content[to+"RECORD"] = []byte(record.String())
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, n := range append(names, to+"RECORD") {
		h := &zip.FileHeader{Name: n, Method: zip.Deflate}
		h.SetMode(0o644)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = w.Write(content[n])
		}
		if err != nil {
			return "", nil, err
		}
	}
	if err := z.Close(); err != nil {
		return "", nil, err
	}
	return name + "-" + version + "-" + tag + ".whl", out.Bytes(), nil
}
