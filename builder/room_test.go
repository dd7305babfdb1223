package builder_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/layer"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
	commands "github.com/kuroko-faas/kuroko/internal/run"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// buildImage puts an image with this machine's shell and a few tools into a
// registry, and programs of the test's own.
func buildImage(t testing.TB, reg *registrytest.Server, programs map[string]string) name.Digest {
	t.Helper()
	files := fstest.MapFS{}
	library := regexp.MustCompile(`(/\S+) \(0x`)
	add := func(inside, here string) {
		data, err := os.ReadFile(here)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(inside, "/")] = &fstest.MapFile{Data: data, Mode: 0o755}
	}
	for _, tool := range []string{"sh", "cat", "id", "sleep", "env", "mkdir"} {
		p, err := exec.LookPath(tool)
		if err != nil {
			t.Skipf("needs %s on this machine to make a build image", tool)
		}
		out, err := exec.Command("ldd", p).Output()
		if err != nil {
			t.Skipf("needs ldd to find what %s links: %v", tool, err)
		}
		add("bin/"+tool, p)
		for _, m := range library.FindAllSubmatch(out, -1) {
			add(string(m[1]), string(m[1]))
		}
	}
	for path, text := range programs {
		files[path] = &fstest.MapFile{Data: []byte(text), Mode: 0o755}
	}
	files["etc/mark"] = &fstest.MapFile{Data: []byte("of the build image\n"), Mode: 0o644}
	l, err := layer.FromTree(context.Background(), "", layer.Gzip, layer.Tree{Prefix: "/", FS: files})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	img, err := mutate.AppendLayers(empty.Image, l)
	if err == nil {
		img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: must(img.ConfigFile()).RootFS,
			Config: v1.Config{Env: []string{"PATH=/usr/bin:/bin", "FROM_IMAGE=yes"}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(reg.Host + "/build/tools")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag("latest"), img); err != nil {
		t.Fatal(err)
	}
	reg.Reset()
	return repo.Digest(must(img.Digest()).String())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// inEachMode runs f where commands run in a sandbox of each kind that this
// machine has.
func inEachMode(t *testing.T, f func(t *testing.T, mode sandbox.Mode)) {
	t.Helper()
	for _, mode := range []sandbox.Mode{sandbox.Root, sandbox.UserNS} {
		t.Run(string(mode), func(t *testing.T) {
			p, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: mode, Root: t.TempDir(), Argv: []string{"/none"}})
			if errors.Is(err, sandbox.ErrForbidden) {
				t.Skipf("not possible on this machine: %v", err)
			}
			if err == nil {
				p.Wait()
			}
			f(t, mode)
		})
	}
}

func TestCommandsRunInTheBuildImage(t *testing.T) {
	reg := registrytest.New(t)
	image := buildImage(t, reg, nil)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o644); err != nil {
		t.Fatal(err)
	}
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		trees := t.TempDir()
		certs := t.TempDir()
		cert := filepath.Join(certs, "own.crt")
		if err := os.WriteFile(cert, []byte("the company's"), 0o644); err != nil {
			t.Fatal(err)
		}
		e := engine(t, builder.Options{Mode: mode, TreeDir: trees, TempDir: t.TempDir(), Env: []string{"PATH=/of/the/job", "TZ=Asia/Shanghai",
			"SSL_CERT_FILE=" + cert, "SSL_CERT_DIR=" + certs, "NODE_EXTRA_CA_CERTS=" + cert, "NO_PROXY=x.example", "HTTP_PROXY=http://p.example"}})
		dir := t.TempDir()
		var notices []string
		script := func(text string) (string, error) {
			var out bytes.Buffer
			ran, err := e.Run(t.Context(), builder.Command{
				Image: image, Argv: []string{"sh", "-c", text}, Env: []string{"MINE=1"}, Dir: dir, Stdout: &out, Stderr: &out,
				Notice: func(s string) { notices = append(notices, s) },
			})
			if ran != (builder.Ran{Sandbox: builder.SandboxNamespaces, Image: image.DigestStr()}) {
				t.Errorf("ran in %+v", ran)
			}
			return out.String(), err
		}
		out, err := script(`cat /etc/mark; pwd; echo "$PATH $FROM_IMAGE $MINE $TZ $HOME"; echo "$NO_PROXY $no_proxy"; cat $SSL_CERT_FILE; cat ` + secret + ` 2>&1 || echo unseen
			echo made > made.txt && echo x > $HOME/x && echo x > /tmp/x && (echo changed > /etc/mark; cat /etc/mark)`)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, want := range []string{"of the build image\n/app\n/usr/bin:/bin yes 1 Asia/Shanghai /", "\nx.example,127.0.0.1 127.0.0.1\n", "the company's", "unseen"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		if strings.Contains(out, "s3cret") {
			t.Error("it saw a file of the job")
		}
		st, err := os.Stat(filepath.Join(dir, "made.txt"))
		if err != nil {
			t.Fatal(err)
		}
		if owner := st.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
			t.Errorf("what it made belongs to %d", owner)
		}
		// What was written to the image is gone, and the image is not pulled again.
		reg.Reset()
		if out, err = script("cat /etc/mark; ls $HOME/x /tmp/x 2>/dev/null || echo clean"); err != nil || !strings.HasPrefix(out, "of the build image\nclean") {
			t.Errorf("the second command: %v\n%s", err, out)
		}
		if n := len(reg.Requests()); n != 0 || len(notices) != 1 || !strings.HasPrefix(notices[0], "unpack build image") {
			t.Errorf("%d requests, notices %q", n, notices)
		}
		var exit *commands.ExitError
		if _, err := script("exit 3"); !errors.As(err, &exit) || exit.Code != 3 {
			t.Errorf("got %v", err)
		}
	})
}

// A command sees no .git: GitLab's holds the job's token. The caller's stays as
// it is.
func TestCommandsSeeNoGit(t *testing.T) {
	image := buildImage(t, registrytest.New(t), nil)
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		e := engine(t, builder.Options{Mode: mode, TreeDir: t.TempDir(), TempDir: t.TempDir()})
		for git, file := range map[string]string{"a folder": ".git/config", "a file": ".git"} {
			dir := t.TempDir()
			file = filepath.Join(dir, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("s3cret"), 0o644)); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			_, err := e.Run(t.Context(), builder.Command{Image: image, Dir: dir, Stdout: &out, Stderr: &out, Argv: []string{"sh", "-c",
				"cat .git .git/* 2>/dev/null; echo .git/*; echo x 2>/dev/null >.git/config || echo x 2>/dev/null >.git || echo kept"}})
			if err != nil || strings.Contains(out.String(), "s3cret") || strings.Contains(out.String(), "config") || !strings.Contains(out.String(), "kept") {
				t.Errorf("%s: %v\n%s", git, err, &out)
			}
			if data, err := os.ReadFile(file); err != nil || string(data) != "s3cret" {
				t.Errorf("%s afterwards: %q, %v", git, data, err)
			}
		}
	})
}

// Without overlay a command has a copy of its build image, which is gone with
// it.
func TestCommandsWithoutOverlay(t *testing.T) {
	reg := registrytest.New(t)
	image := buildImage(t, reg, nil)
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		trees, tmp, dir := t.TempDir(), t.TempDir(), t.TempDir()
		e := engine(t, builder.Options{Mode: mode, NoOverlay: true, TreeDir: trees, TempDir: tmp, Secret: someSecrets})
		unpacked := 0
		script := func(text string) string {
			t.Helper()
			var out bytes.Buffer
			ran, err := e.Run(t.Context(), builder.Command{
				Image: image, Argv: []string{"sh", "-c", text}, Dir: dir, Secrets: []string{"VALUE"}, Stdout: &out, Stderr: &out,
				Notice: func(string) { unpacked++ },
			})
			if err != nil || ran != (builder.Ran{Sandbox: builder.SandboxNamespaces, Image: image.DigestStr()}) {
				t.Errorf("ran in %+v, %v: %s", ran, err, out.String())
			}
			return out.String()
		}
		owner := strconv.Itoa(os.Geteuid())
		if mode == sandbox.UserNS {
			owner = "65532" // nobody else exists
		}
		if got, want := script("cat /etc/mark /run/secrets/VALUE; echo; pwd; id -u; echo made > made; mkdir /etc/more && echo changed > /etc/mark; cat /etc/mark"),
			"of the build image\nthe-secret-value\n/app\n"+owner+"\nchanged\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := script("cat /etc/mark; cat made; test -e /etc/more || echo gone"); got != "of the build image\nmade\ngone\n" {
			t.Errorf("the second command: %q", got)
		}
		for _, left := range []string{trees, tmp} {
			if list, err := os.ReadDir(left); err != nil || len(list) > 0 {
				t.Errorf("left in %s: %v, %v", left, list, err)
			}
		}
		if unpacked != 2 {
			t.Errorf("unpacked %d times", unpacked)
		}
	})
}

// A yarn.lock that leads to another registry is shown, and not written.
func TestCommandsSeeOtherFiles(t *testing.T) {
	const lock = "a@1:\n  version \"1.0.0\"\n  resolved \"https://registry.yarnpkg.com/@team/a/-/a-1.0.0.tgz#0\"\n"
	image := buildImage(t, registrytest.New(t), nil)
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "yarn.lock"), []byte(lock), 0o644); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		_, err := engine(t, builder.Options{Mode: mode, TreeDir: t.TempDir(), TempDir: t.TempDir()}).Run(t.Context(), builder.Command{
			Image: image, Dir: dir, Argv: []string{"sh", "-c", "cat yarn.lock; (echo x > yarn.lock) 2>/dev/null || echo read-only"}, Stdout: &out,
			Instead: map[string][]byte{"yarn.lock": builder.YarnLock([]byte(lock), "http://127.0.0.1:1/npm/")},
		})
		if want := strings.Replace(lock, "https://registry.yarnpkg.com/", "http://127.0.0.1:1/npm/", 1) + "read-only\n"; err != nil || out.String() != want {
			t.Errorf("got %q, %v; want %q", out.String(), err, want)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "yarn.lock")); err != nil || string(data) != lock {
			t.Errorf("the file is %q, %v", data, err)
		}
	})
}

// Everything that a command started ends with it, whatever it does about
// signals.
func TestCommandsEnd(t *testing.T) {
	image := buildImage(t, registrytest.New(t), nil)
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		dir := t.TempDir()
		fifo := filepath.Join(dir, "alive")
		if err := syscall.Mkfifo(fifo, 0o666); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(fifo, os.O_RDWR, 0) // opens at once
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("the job's time is up")
		ended := make(chan error, 1)
		go func() {
			_, err := engine(t, builder.Options{Mode: mode, TreeDir: t.TempDir(), TempDir: t.TempDir()}).Run(ctx, builder.Command{Image: image, Dir: dir,
				Argv: []string{"sh", "-c", "(trap '' TERM HUP INT; exec >alive; echo ready; while :; do sleep 600; done) & wait"}})
			ended <- err
		}()
		r := bufio.NewReader(f)
		if line, err := r.ReadString('\n'); line != "ready\n" {
			t.Fatal(line, err)
		}
		// From here on only the command holds the other end.
		reader, err := os.OpenFile(fifo, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
		f.Close()
		cancel(stop)
		if err := <-ended; !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		if _, err := io.Copy(io.Discard, reader); err != nil { // until the last writer is gone
			t.Error(err)
		}
	})
}

// Without namespaces a command runs in the job container when that has the
// program, and says so; else it says what is missing.
func TestCommandsWithoutSandbox(t *testing.T) {
	reg := registrytest.New(t)
	image := buildImage(t, reg, nil)
	e := engine(t, builder.Options{Mode: sandbox.None, TempDir: t.TempDir(), Env: []string{"PATH=" + os.Getenv("PATH")}})
	t.Setenv("FAAS_TEST_TOKEN", "t0ken")
	var out bytes.Buffer
	ran, err := e.Run(t.Context(), builder.Command{Image: image, Argv: []string{"sh", "-c", "env; echo x > $HOME/x; echo x > $TMPDIR/x"}, Env: []string{"MINE=1"}, Dir: t.TempDir(), Stdout: &out})
	if err != nil || ran.Sandbox != builder.SandboxNone || ran.Image != "" || ran.Why == "" {
		t.Fatal(ran, err)
	}
	if strings.Contains(out.String(), "t0ken") || !strings.Contains(out.String(), "MINE=1\n") {
		t.Errorf("its environment:\n%s", out.String())
	}
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("%d requests for an image of no use", n)
	}
	var missing *builder.MissingTool
	_, err = e.Run(t.Context(), builder.Command{Image: image, Argv: []string{"no-such-tool"}, Dir: t.TempDir()})
	if !errors.As(err, &missing) || !strings.Contains(err.Error(), "the job container has no no-such-tool") {
		t.Errorf("got %v", err)
	}
}

// A build image that is not there, or lacks a program, is an error: never a
// reason to run elsewhere.
func TestBuildImageIsMissing(t *testing.T) {
	inEachMode(t, func(t *testing.T, mode sandbox.Mode) {
		reg := registrytest.New(t)
		image := buildImage(t, reg, nil)
		e := engine(t, builder.Options{Mode: mode, TempDir: t.TempDir()})
		none := image.Context().Digest("sha256:" + strings.Repeat("0", 64))
		if _, err := e.Run(t.Context(), builder.Command{Image: none, Argv: []string{"sh"}, Dir: t.TempDir()}); !errors.Is(err, builder.ErrNoBase) {
			t.Errorf("got %v", err)
		}
		var missing *builder.MissingTool
		if _, err := e.Run(t.Context(), builder.Command{Image: image, Argv: []string{"npm"}, Dir: t.TempDir()}); !errors.As(err, &missing) || missing.Image != image.String() {
			t.Errorf("got %v", err)
		}
	})
}
