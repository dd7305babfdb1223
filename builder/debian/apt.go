package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/internal/run"
)

// Package is one resolved Debian package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`   // Debian's name: amd64, all
	SHA256  string `json:"sha256"` // of the archive, from the signed index
	Size    int64  `json:"size"`   // of the archive, in bytes

	file string // name in the archive cache
	uri  string // may hold a mirror's credentials: never printed
	path string // of the archive, once it is there
}

// ErrUntrusted is wrapped when apt has no signature for what it would fetch.
var ErrUntrusted = errors.New("the package source is not signed by a trusted key")

// apt drives the machine's apt in a private state folder. The caller holds the
// builder's lock.
type apt struct {
	b    *Builder
	dir  string
	arch string
	// fresh means that the lists were fetched, or tried, in this run.
	fresh bool
	// trouble is what the last update could not fetch, in apt's words.
	trouble []string
}

func (b *Builder) newApt(ctx context.Context) (*apt, error) {
	a := &apt{b: b, dir: filepath.Join(b.Cache, "apt")}
	if strings.ContainsAny(a.dir, "\"\n\\;{}") {
		return nil, fmt.Errorf("debian: the folder %q can't be written in an apt configuration", a.dir)
	}
	for _, program := range []string{"apt-get", "dpkg-deb", "dpkg"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("debian: %w: %s is not in PATH", ErrNoApt, program)
		}
	}
	for _, d := range []string{"lists/partial", "archives/partial", "none/partial", "tmp"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("debian: apt: %w", err)
		}
	}
	out, err := a.run(ctx, time.Minute, "dpkg", "--print-architecture")
	if err != nil {
		return nil, err
	}
	a.arch = strings.TrimSpace(string(out))
	if a.arch == "" {
		return nil, errors.New("debian: dpkg names no architecture")
	}
	return a, a.configure()
}

// configure writes the settings that differ from the machine's. Hooks are
// cleared: they belong to the machine's own state, and need root.
func (a *apt) configure() error {
	conf := fmt.Sprintf(`#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
#clear AptCli::Hooks;
#clear DPkg::Pre-Install-Pkgs;
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Sandbox::User "";
APT::Get::Assume-Yes "true";
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Acquire::ForceHash "sha256";
Acquire::Retries "%[3]d";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
Dir::State "%[1]s";
Dir::State::lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::State::extended_states "%[1]s/extended_states";
Dir::Cache "%[1]s";
Dir::Cache::archives "%[1]s/archives";
Dir::Cache::pkgcache "%[1]s/pkgcache.bin";
Dir::Cache::srcpkgcache "%[1]s/srcpkgcache.bin";
Dir::Log "%[1]s/log";
`, a.dir, a.arch, a.b.retries())
	return a.writeFile("apt.conf", []byte(conf))
}

// writeFile leaves an equal file alone, so that apt's own cache stays valid.
func (a *apt) writeFile(name string, data []byte) error {
	p := filepath.Join(a.dir, name)
	if have, err := os.ReadFile(p); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := os.WriteFile(p, data, 0o644); err != nil {
		return fmt.Errorf("debian: apt: %w", err)
	}
	return nil
}

// pretend writes the state in which the packages of without are installed.
func (a *apt) pretend(without []string) error {
	var s strings.Builder
	for _, name := range without {
		fmt.Fprintf(&s, "Package: %s\nStatus: install ok installed\nVersion: 9999999999:0\nArchitecture: %s\n"+
			"Multi-Arch: allowed\nMaintainer: none <none@invalid>\nDescription: left out of this image\n\n", name, a.arch)
	}
	return a.writeFile("status", []byte(s.String()))
}

// updated is when the package lists were last fetched.
func (a *apt) updated() time.Time {
	info, err := os.Stat(filepath.Join(a.dir, "updated"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// update fetches the package lists. A source that does not answer is not an
// error yet: what is known may be enough. It is remembered in trouble.
func (a *apt) update(ctx context.Context) error {
	if err := a.pretend(nil); err != nil {
		return err
	}
	var said tail
	_, err := a.apt(ctx, a.b.limits().Update, &said, "apt-get", "update")
	a.fresh, a.trouble = true, complaints(said.String())
	switch {
	case errors.Is(err, ErrNoApt), errors.Is(err, syscall.ENOSPC), ctx.Err() != nil:
		return err
	case err != nil && len(a.trouble) == 0:
		a.trouble = []string{err.Error()}
	}
	stamp := filepath.Join(a.dir, "updated")
	if len(a.trouble) > 0 {
		os.Remove(stamp)
		return nil
	}
	now := a.b.now()
	if err := os.WriteFile(stamp, nil, 0o644); err != nil {
		return fmt.Errorf("debian: apt: %w", err)
	}
	return os.Chtimes(stamp, now, now)
}

// resolve asks apt which packages the wanted ones need, without fetching any.
// The result is sorted by name.
func (a *apt) resolve(ctx context.Context, wanted, without []string) ([]Package, error) {
	if err := a.pretend(without); err != nil {
		return nil, err
	}
	var said tail
	// An empty archive cache: apt leaves out of its answer what it has.
	args := append([]string{"-o", "Dir::Cache::archives=" + filepath.Join(a.dir, "none"), "-qq", "--print-uris", "install", "--"}, wanted...)
	out, err := a.apt(ctx, a.b.limits().Resolve, &said, "apt-get", args...)
	if err != nil {
		return nil, a.refused(ctx, err, said.String(), wanted)
	}
	pkgs, err := parseURIs(out)
	if err != nil {
		return nil, fmt.Errorf("debian: apt-get --print-uris: %w", err)
	}
	if len(pkgs) == 0 {
		return nil, &PackageError{Wanted: wanted, Detail: "apt finds nothing to install"}
	}
	return pkgs, nil
}

var (
	missingRE = regexp.MustCompile(`(?m)^E: (?:Unable to locate package (\S+)|Package '([^']+)' has no installation candidate|Version '([^']+)' for '([^']+)' was not found)`)
	uriRE     = regexp.MustCompile(`^'([^']+)' (\S+) ([0-9]+) (?:SHA256:([0-9a-f]{64}))?$`)
	secretRE  = regexp.MustCompile(`//[^/@\s]*@`)
)

// refused makes an error of apt's answer to an install.
func (a *apt) refused(ctx context.Context, err error, said string, wanted []string) error {
	if errors.Is(err, ErrNoApt) || errors.Is(err, syscall.ENOSPC) || ctx.Err() != nil {
		return err
	}
	var missing, names []string
	for _, m := range missingRE.FindAllStringSubmatch(said, -1) {
		switch {
		case m[4] != "":
			missing, names = append(missing, m[4]+"="+m[3]), append(names, m[4])
		default:
			missing = append(missing, m[1]+m[2])
		}
	}
	switch {
	case len(a.trouble) > 0:
		return &builder.Unavailable{Op: "fetch the package lists", Host: host(strings.Join(a.trouble, "\n")), Attempts: 1 + a.b.retries(),
			Err: errors.New(strings.Join(append(a.trouble, complaints(said)...), "\n"))}
	case len(missing) > 0:
		return &PackageError{Wanted: missing, Offered: a.offered(ctx, names)}
	}
	// The explanation is an answer for people, on stdout.
	out, _ := a.apt(ctx, a.b.limits().Resolve, io.Discard, "apt-get", append([]string{"-q", "--simulate", "install", "--"}, wanted...)...)
	if c := append(unmet(string(out)), complaints(said)...); len(c) > 0 {
		return &PackageError{Wanted: wanted, Detail: strings.Join(c, "\n")}
	}
	return err
}

// offered lists the versions of packages that the sources have, for a message.
func (a *apt) offered(ctx context.Context, names []string) []string {
	if len(names) == 0 {
		return nil
	}
	out, err := a.apt(ctx, time.Minute, io.Discard, "apt-cache", append([]string{"madison"}, names...)...)
	if err != nil {
		return nil
	}
	var all []string
	for _, line := range strings.Split(string(out), "\n") {
		if f := strings.Split(line, "|"); len(f) == 3 {
			all = append(all, strings.TrimSpace(f[0])+" "+strings.TrimSpace(f[1]))
		}
	}
	return slices.Compact(all)
}

// parseURIs reads the answer of --print-uris:
//
//	'http://…/libc6_2.36-9_amd64.deb' libc6_2.36-9_amd64.deb 2759320 SHA256:…
func parseURIs(out []byte) ([]Package, error) {
	var pkgs []Package
	for _, line := range strings.Split(string(out), "\n") {
		if line == "" {
			continue
		}
		m := uriRE.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("unexpected line %q", secretRE.ReplaceAllString(line, "//***@"))
		}
		p := Package{uri: m[1], file: m[2], SHA256: m[4]}
		f := strings.Split(strings.TrimSuffix(p.file, ".deb"), "_")
		if len(f) != 3 || strings.Contains(p.file, "/") || !packageRE.MatchString(f[0]) {
			return nil, fmt.Errorf("unexpected file name %q", p.file)
		}
		version, err := url.PathUnescape(f[1])
		if err != nil {
			return nil, fmt.Errorf("unexpected file name %q", p.file)
		}
		p.Name, p.Version, p.Arch = f[0], version, f[2]
		if p.SHA256 == "" {
			return nil, fmt.Errorf("%s: the package list has no SHA-256 for it", p.Name)
		}
		if p.Size, err = strconv.ParseInt(m[3], 10, 64); err != nil {
			return nil, fmt.Errorf("%s: size: %w", p.Name, err)
		}
		pkgs = append(pkgs, p)
	}
	slices.SortFunc(pkgs, func(a, b Package) int { return strings.Compare(a.Name+"_"+a.Arch, b.Name+"_"+b.Arch) })
	return pkgs, nil
}

// download fetches what is not there yet and verifies every archive against
// the signed index. A damaged one is fetched again once.
func (a *apt) download(ctx context.Context, wanted, without []string, pkgs []Package) error {
	for attempt := 1; ; attempt++ {
		bad, err := a.verify(ctx, pkgs)
		if err != nil {
			return err
		}
		if len(bad) == 0 {
			return nil
		}
		if attempt == 3 {
			return fmt.Errorf("debian: %s: the archive has another SHA-256 than the package list says", strings.Join(bad, ", "))
		}
		if err := a.pretend(without); err != nil {
			return err
		}
		var said tail
		args := append([]string{"-q", "--download-only", "install", "--"}, wanted...)
		if _, err := a.apt(ctx, a.b.limits().Download, &said, "apt-get", args...); err != nil {
			return a.fetchFailed(ctx, err, said.String())
		}
	}
}

func (a *apt) fetchFailed(ctx context.Context, err error, said string) error {
	c := complaints(said)
	text := strings.Join(c, "\n")
	switch {
	case errors.Is(err, ErrNoApt), errors.Is(err, syscall.ENOSPC), ctx.Err() != nil:
		return err
	case strings.Contains(text, "unauthenticated"):
		return fmt.Errorf("debian: download: %w: %s", ErrUntrusted, text)
	case len(c) > 0:
		return &builder.Unavailable{Op: "download packages", Host: host(text), Attempts: 1 + a.b.retries(), Err: errors.New(text)}
	}
	return err
}

// verify fills in where the archives are and names those that are missing or
// damaged; damaged ones are removed.
func (a *apt) verify(ctx context.Context, pkgs []Package) (bad []string, err error) {
	for i := range pkgs {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		p := &pkgs[i]
		p.path = filepath.Join(a.dir, "archives", p.file)
		if u, err := url.Parse(p.uri); err == nil && u.Scheme == "file" {
			p.path = u.Path // apt uses these in place
		}
		sum, err := fileSum(p.path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			bad = append(bad, p.Name)
		case err != nil:
			return nil, fmt.Errorf("debian: %w", err)
		case sum != p.SHA256:
			bad = append(bad, p.Name)
			if strings.HasPrefix(p.path, a.dir) {
				os.Remove(p.path)
			}
		}
	}
	return bad, nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// apt runs one of apt's programs with the private configuration. What it
// answered is returned with an error too; said gets what it complained about.
func (a *apt) apt(ctx context.Context, limit time.Duration, said io.Writer, program string, args ...string) ([]byte, error) {
	return a.exec(ctx, limit, said, program, append([]string{"-c", filepath.Join(a.dir, "apt.conf")}, args...)...)
}

func (a *apt) run(ctx context.Context, limit time.Duration, program string, args ...string) ([]byte, error) {
	return a.exec(ctx, limit, io.Discard, program, args...)
}

// maxAnswer bounds what we keep of apt's output; a closure is some 20 KiB.
const maxAnswer = 8 << 20

func (a *apt) exec(ctx context.Context, limit time.Duration, said io.Writer, program string, args ...string) ([]byte, error) {
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%s: no end after %v: %w", program, limit, context.DeadlineExceeded))
	defer cancel()
	out := newLimited(maxAnswer)
	var stderr tail
	err := run.Command{Path: program, Args: args, Env: append(a.b.env(), "TMPDIR="+filepath.Join(a.dir, "tmp")), Dir: a.dir,
		Stdout: out, Stderr: io.MultiWriter(said, &stderr)}.Run(limited)
	answer := out.buf.Bytes()
	switch text := stderr.String(); {
	case err == nil && out.over:
		return nil, fmt.Errorf("debian: %s: more than %d bytes of output", program, maxAnswer)
	case err == nil:
		return answer, nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("debian: %w: %s is not in PATH", ErrNoApt, program)
	case ctx.Err() == nil && limited.Err() != nil:
		return nil, &builder.Unavailable{Op: program + " " + verb(args), Host: "the package sources", Err: context.Cause(limited)}
	case noSpace(text):
		return nil, fmt.Errorf("debian: %s in %s: %w", program, a.dir, syscall.ENOSPC)
	default:
		if c := complaints(text); len(c) > 0 {
			return answer, fmt.Errorf("debian: %w: %s", err, strings.Join(c, "\n"))
		}
		return answer, fmt.Errorf("debian: %w", err)
	}
}

// verb is apt's subcommand, for messages.
func verb(args []string) string {
	for _, v := range []string{"update", "install", "madison"} {
		if slices.Contains(args, v) {
			return v
		}
	}
	return ""
}

func noSpace(text string) bool {
	return strings.Contains(text, "No space left on device") || strings.Contains(text, "enough free space")
}

// complaints are apt's lines that say what is wrong, without credentials.
func complaints(said string) []string {
	var all []string
	for _, line := range strings.Split(said, "\n") {
		line = strings.TrimSpace(line)
		text, ok := strings.CutPrefix(line, "E: ")
		if !ok {
			if text, ok = strings.CutPrefix(line, "W: "); ok && !strings.Contains(text, "Failed to fetch") &&
				!strings.Contains(text, "failed to download") && !strings.Contains(text, "GPG error") {
				ok = false
			}
		}
		if ok && !strings.HasPrefix(text, "Some index files failed") {
			all = append(all, secretRE.ReplaceAllString(text, "//***@"))
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > 8 {
		all = append(all[:8], fmt.Sprintf("and %d more", len(all)-8))
	}
	return all
}

// unmet are the lines in which apt explains what does not fit.
func unmet(said string) []string {
	var all []string
	on := false
	for _, line := range strings.Split(said, "\n") {
		switch {
		case strings.HasPrefix(line, "The following packages have unmet dependencies"):
			on = true
		case on && strings.HasPrefix(line, " "):
			all = append(all, strings.TrimSpace(line))
		default:
			on = false
		}
	}
	return all
}

var hostRE = regexp.MustCompile(`[a-z+]+://(?:[^/@\s]*@)?([^/\s:]+)`)

// host names whom apt could not reach.
func host(said string) string {
	if m := hostRE.FindStringSubmatch(said); m != nil {
		return m[1]
	}
	return "the package sources"
}

// tail keeps the end of what apt says, enough for every complaint.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	const keep = 64 << 10
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - keep; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
