package debian

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// generation is raised whenever the same packages give another layer, because
// this package writes something else. It is part of every layer's key.
const generation = 1

// NonRoot is the user of function images, by number: Kubernetes can only
// check numbers.
const NonRoot = 65532

// leftOut are folders that an image of a function has no use for: package
// management, what is made at run time, documentation in many languages.
var leftOut = []string{
	"dev", "proc", "sys", "etc/apt", "var/lib/apt", "var/lib/dpkg", "var/cache", "var/log",
	"usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug",
	"usr/share/doc-base", "usr/share/gnome", "usr/share/help", "usr/share/linda", "usr/share/omf", "usr/share/menu",
	"usr/share/bash-completion", "usr/share/zsh", "etc/bash_completion.d", "usr/lib/systemd", "etc/systemd",
	"etc/cron.d", "etc/cron.daily", "etc/init.d", "etc/default", "etc/logrotate.d", "etc/xdg",
	"etc/dpkg", "etc/skel", "etc/update-motd.d",
}

// dropper decides what of the packages is left out. Licences stay: who hands
// out an image hands out its programs.
func dropper(patterns []string) func(string) bool {
	return func(name string) bool {
		if under(name, "usr/share/doc") {
			return name != "usr/share/doc" && path.Base(name) != "copyright" && strings.Count(name, "/") != 3
		}
		for _, d := range leftOut {
			if under(name, d) {
				return true
			}
		}
		for _, p := range patterns {
			for at := name; at != "."; at = path.Dir(at) {
				if ok, _ := path.Match(p, at); ok {
					return true
				}
			}
		}
		return false
	}
}

func under(name, dir string) bool {
	return name == dir || strings.HasPrefix(name, dir+"/")
}

// finish writes what Debian's maintainer scripts would have made, and the
// frame that every image has.
func (t *tree) finish(r Recipe, arch string) error {
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{
		{"app", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"proc", 0o755}, {"root", 0o700}, {"run", 0o755},
		{"sys", 0o755}, {"usr/bin", 0o755}, {"usr/sbin", 0o755}, {"usr/lib", 0o755}, {"usr/local/bin", 0o755}, {"var", 0o755},
		// Written by whoever the image runs as: owners are 0:0 in a layer
		// that a user namespace with a single id can unpack.
		{"home/nonroot", 0o777 | fs.ModeSticky}, {"tmp", 0o777 | fs.ModeSticky}, {"var/tmp", 0o777 | fs.ModeSticky},
	} {
		if err := t.setDir(d.name, d.mode); err != nil {
			return err
		}
	}
	for _, top := range merged {
		if n := t.nodes["usr/"+top]; n == nil || !n.isDir() {
			continue
		}
		link := &node{mode: fs.ModeSymlink | 0o777, link: "usr/" + top, from: &generated}
		link.inode = link
		t.nodes[top] = link
	}
	for _, step := range []func() error{
		func() error { return t.users() },
		func() error { return t.certificates() },
		func() error { return t.timeZone() },
		func() error { return t.nameService() },
		func() error { return t.links(r.Links, arch) },
		func() error { return t.libraryDirs() },
		func() error { return t.needed() },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// users writes passwd and group. A shell is named where there is one.
func (t *tree) users() error {
	shell := "/usr/sbin/nologin"
	for _, s := range []string{"bin/sh", "bin/bash"} {
		if t.resolve(s) != nil {
			shell = "/" + s
		}
	}
	passwd := fmt.Sprintf("root:x:0:0:root:/root:%[1]s\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"+
		"nonroot:x:%[2]d:%[2]d:nonroot:/home/nonroot:%[1]s\n", shell, NonRoot)
	group := fmt.Sprintf("root:x:0:\ntty:x:5:\nstaff:x:50:\nnogroup:x:65534:\nnonroot:x:%d:\n", NonRoot)
	if err := t.setFile("etc/passwd", 0o644, []byte(passwd)); err != nil {
		return err
	}
	return t.setFile("etc/group", 0o644, []byte(group))
}

// certificates concatenates the CA certificates, as update-ca-certificates
// does, and points OpenSSL's default file at the result.
func (t *tree) certificates() error {
	const from, bundle = "usr/share/ca-certificates", "etc/ssl/certs/ca-certificates.crt"
	var out bytes.Buffer
	for _, name := range t.names() {
		n := t.nodes[name]
		if !under(name, from) || path.Ext(name) != ".crt" || !n.mode.IsRegular() {
			continue
		}
		if n.inode.size > 1<<20 {
			return fmt.Errorf("%w: %s is no certificate: %d bytes", ErrUnsafe, name, n.inode.size)
		}
		data, err := io.ReadAll(t.open(n))
		if err != nil {
			return err
		}
		for rest := data; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if err := pem.Encode(&out, block); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if out.Len() == 0 {
		return nil
	}
	if err := t.setFile(bundle, 0o644, out.Bytes()); err != nil {
		return err
	}
	// What is linked with OpenSSL looks here, and Debian ships it only in the
	// package of the openssl program.
	if err := t.setLink("usr/lib/ssl/cert.pem", "/"+bundle); err != nil {
		return err
	}
	if t.nodes["usr/lib/ssl/certs"] == nil {
		if err := t.setLink("usr/lib/ssl/certs", "/etc/ssl/certs"); err != nil {
			return err
		}
	}
	return t.javaTrust(out.Bytes())
}

// timeZone is UTC until somebody sets TZ.
func (t *tree) timeZone() error {
	if t.resolve("usr/share/zoneinfo/Etc/UTC") == nil {
		return nil
	}
	if err := t.setFile("etc/timezone", 0o644, []byte("Etc/UTC\n")); err != nil {
		return err
	}
	return t.setLink("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
}

// nameService says where names are looked up; the C library would ask DNS
// before /etc/hosts otherwise.
func (t *tree) nameService() error {
	if t.nodes["etc/nsswitch.conf"] != nil {
		return nil
	}
	return t.setFile("etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\n"+
		"networks: files\nprotocols: files\nservices: files\n"))
}

func (t *tree) links(links map[string]string, arch string) error {
	known := strings.NewReplacer("{arch}", arch, "{triplet}", triplets[arch])
	for _, pattern := range sortedKeys(links) {
		name := known.Replace(pattern)
		if err := t.setLink(name, known.Replace(links[pattern])); err != nil {
			return err
		}
		if t.resolve(name) == nil {
			return fmt.Errorf("%w: link %s: %s is not in the image", ErrRecipe, name, links[pattern])
		}
	}
	return nil
}

// triplets are the folders of libraries by Debian's architecture.
var triplets = map[string]string{
	"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf", "i386": "i386-linux-gnu", "ppc64el": "powerpc64le-linux-gnu",
	"s390x": "s390x-linux-gnu", "riscv64": "riscv64-linux-gnu", "loong64": "loongarch64-linux-gnu", "mips64el": "mips64el-linux-gnuabi64",
}

// libraryDirs makes sure that the loader finds every library without
// ld.so.cache, which only ldconfig can write: it looks into Debian's own
// folders by itself, into others that a package adds it does not.
func (t *tree) libraryDirs() error {
	for _, name := range t.names() {
		n := t.nodes[name]
		if path.Dir(name) != "etc/ld.so.conf.d" || path.Ext(name) != ".conf" || !n.mode.IsRegular() {
			continue
		}
		s := bufio.NewScanner(io.LimitReader(t.open(n), 64<<10))
		for s.Scan() {
			dir := strings.Trim(strings.TrimSpace(s.Text()), "/")
			if dir == "" || dir[0] == '#' || builtinLibraries(usrMerge(dir)) {
				continue
			}
			for lib := range t.nodes {
				if under(lib, usrMerge(dir)) && strings.Contains(path.Base(lib), ".so") {
					return fmt.Errorf("%w: %s: libraries in /%s need ld.so.cache, which is not made here", ErrRecipe, t.nodes[name].from.name, dir)
				}
			}
		}
		if err := s.Err(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// needed makes sure that every program and library finds what it is linked
// with: a recipe leaves packages out, and the loader's complaint would be read
// at a function's first start only.
func (t *tree) needed() error {
	have := map[string]bool{}
	for name := range t.nodes {
		have[path.Base(name)] = true
	}
	var missing []string
	for _, name := range t.names() {
		n := t.nodes[name]
		if !n.mode.IsRegular() || n.inode != n || n.size < 64 {
			continue
		}
		f, err := elf.NewFile(io.NewSectionReader(t.spool, n.off, n.size))
		if err != nil {
			continue // no program
		}
		libraries, err := f.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s in %s: %w", name, n.from.name, err)
		}
		for _, l := range libraries {
			if !have[path.Base(l)] {
				missing = append(missing, fmt.Sprintf("%s (%s) needs %s", name, n.from.name, l))
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: libraries are left out: %s", ErrRecipe, strings.Join(missing, "; "))
	}
	return nil
}

// builtinLibraries tells whether the loader knows dir without configuration:
// usr/lib and usr/lib/<triplet>.
func builtinLibraries(dir string) bool {
	rest, ok := strings.CutPrefix(dir, "usr/lib")
	if !ok || rest == "" {
		return ok
	}
	triplet := strings.TrimPrefix(rest, "/")
	return !strings.Contains(triplet, "/") && strings.Count(triplet, "-") >= 2
}

// installed records the packages for scanners, one file each, as images
// without a package manager do.
func (t *tree) installed(c control) error {
	return t.setFile("var/lib/dpkg/status.d/"+c.name, 0o644, c.text)
}
