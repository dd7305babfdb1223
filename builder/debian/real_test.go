package debian

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/validate"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"

	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// realImage finds the image that `make images` made on this machine, or with
// KUROKO_TEST_IMAGES makes any.
func realImage(t *testing.T, image string) (Image, v1.Image) {
	t.Helper()
	asked := os.Getenv("KUROKO_TEST_IMAGES") != ""
	switch {
	case testing.Short():
		t.Skip("reads and unpacks a real image")
	case !asked && image == "build/java17":
		t.Skip("unpacks hundreds of megabytes: make test-images")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder to look for images in")
	}
	b := &Builder{Cache: filepath.Join(cache, "kuroko"), Env: os.Environ(), Log: func(l string) { t.Log(l) }}
	img, err := b.Find(image, "")
	if asked {
		all, lerr := LoadRecipes(os.DirFS("../../dockerfiles"))
		if lerr != nil {
			t.Fatal(lerr)
		}
		for _, r := range all {
			if r.Name == image {
				img, err = b.Build(t.Context(), r, Options{})
			}
		}
	}
	if errors.Is(err, ErrNotBuilt) {
		t.Skipf("needs the image %s: run make images, or set KUROKO_TEST_IMAGES=1 to make it here", image)
	}
	if err != nil {
		t.Fatal(err)
	}
	built, err := img.Open()
	if err != nil {
		t.Fatal(err)
	}
	return img, built
}

// unpack puts an image's files into a folder, for the test alone: the archive
// is our own.
func unpack(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		// One pass, unlike validate.Image: both digests are checked on the way.
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		cooked, raw := sha256.New(), sha256.New()
		compressed := io.TeeReader(rc, cooked)
		z, err := gzip.NewReader(compressed)
		if err != nil {
			t.Fatal(err)
		}
		plain := io.TeeReader(z, raw)
		for tr := tar.NewReader(plain); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			p := filepath.Join(dir, h.Name)
			switch h.Typeflag {
			case tar.TypeDir:
				if err = os.MkdirAll(p, 0o755); err == nil {
					mode := os.FileMode(h.Mode & 0o777)
					if h.Mode&0o1000 != 0 {
						mode |= os.ModeSticky
					}
					err = os.Chmod(p, mode)
				}
			case tar.TypeSymlink:
				err = os.Symlink(h.Linkname, p)
			case tar.TypeLink:
				err = os.Link(filepath.Join(dir, h.Linkname), p)
			default:
				var f *os.File
				if f, err = os.OpenFile(p, os.O_CREATE|os.O_WRONLY|os.O_EXCL, os.FileMode(h.Mode)); err == nil {
					_, err = io.Copy(f, tr)
					err = errors.Join(err, f.Close())
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.Copy(io.Discard, plain); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, compressed); err != nil {
			t.Fatal(err)
		}
		digest, _ := l.Digest()
		diffID, _ := l.DiffID()
		if d, r := hex.EncodeToString(cooked.Sum(nil)), hex.EncodeToString(raw.Sum(nil)); d != digest.Hex || r != diffID.Hex {
			t.Errorf("layer %s: digest %s, diffID %s, want %s", digest, d, r, diffID)
		}
	}
	return dir
}

// inside runs a command in the image, as its user: in a sandbox, or where
// there is none but the test is root, in a plain chroot.
func inside(t *testing.T, root string, binds []sandbox.Bind, env []string, argv ...string) string {
	t.Helper()
	env = append([]string{"PATH=/usr/bin", "HOME=/home/nonroot", "LANG=C.UTF-8"}, env...)
	var out, errs bytes.Buffer
	mode, why := sandbox.Detect(t.Context())
	switch {
	case mode != sandbox.None:
		p, err := sandbox.Start(t.Context(), sandbox.Spec{Mode: mode, Root: root, Binds: binds, Argv: argv, UID: NonRoot, GID: NonRoot, Dir: "/app",
			Env: env, Stdout: &out, Stderr: &errs})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, errs.String())
		}
	case os.Geteuid() == 0:
		for device, minor := range map[string]int{"null": 3, "urandom": 9} {
			p := filepath.Join(root, "dev", device)
			if err := syscall.Mknod(p, syscall.S_IFCHR, 1<<8|minor); err != nil && !errors.Is(err, os.ErrExist) {
				t.Skip("needs namespaces or device nodes: ", why, "; ", err)
			}
			if err := os.Chmod(p, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range binds {
			data, err := os.ReadFile(b.Source)
			if err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(root, b.Target)
			before, err := os.ReadFile(target)
			if err == nil {
				err = os.WriteFile(target, data, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer os.WriteFile(target, before, 0o644)
		}
		if err := errors.Join(os.Chmod(filepath.Dir(root), 0o755), os.Chmod(root, 0o755)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, "/app", &out, &errs
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: NonRoot, Gid: NonRoot}}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, errs.String())
		}
	default:
		t.Skip("needs namespaces: " + why)
	}
	return out.String()
}

func TestRealNodeBase(t *testing.T) {
	img, built := realImage(t, "base/nodejs18")
	if err := validate.Image(built, validate.Fast); err != nil {
		t.Error(err)
	}
	root := unpack(t, built)
	if err := os.Remove(filepath.Join(root, "usr/bin/sh")); !errors.Is(err, os.ErrNotExist) {
		t.Error("there is a shell in it")
	}
	bundle, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
	if n := bytes.Count(bundle, []byte("BEGIN CERTIFICATE")); err != nil || n < 100 {
		t.Errorf("%d CA certificates, %v", n, err)
	}

	// A server that only its own CA vouches for: node must read the image's
	// bundle, which the test puts that CA into, and nothing else.
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, append(bundle, block...), 0o644); err != nil {
		t.Fatal(err)
	}
	const script = `
		const https = require('https'), fs = require('fs');
		fs.writeFileSync(process.env.HOME + '/x', 'home'); fs.writeFileSync('/tmp/x', 'tmp');
		const answer = {version: process.version, uid: process.getuid(), exec: process.execPath, abi: process.versions.modules, user: require('os').userInfo().username,
			zone: new Date(Date.UTC(2026, 0, 1)).toLocaleString('en-GB', {timeZone: 'Asia/Shanghai'}), arch: process.arch};
		https.get(process.argv[1], r => { answer.authorized = r.socket.authorized; r.on('data', d => answer.body = String(d)).on('end', () => console.log(JSON.stringify(answer))) })
			.on('error', e => { answer.error = e.message; console.log(JSON.stringify(answer)) });`
	run := func(binds ...sandbox.Bind) map[string]any {
		var got map[string]any
		out := inside(t, root, binds, nil, "/usr/bin/node", "-e", script, srv.URL)
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return got
	}
	got := run(sandbox.Bind{Source: ca, Target: "/etc/ssl/certs/ca-certificates.crt", ReadOnly: true})
	for key, want := range map[string]any{"uid": 65532.0, "user": "nonroot", "exec": "/usr/bin/node", "authorized": true, "body": "hello", "zone": "01/01/2026, 08:00:00"} {
		if got[key] != want {
			t.Errorf("%s: %v, want %v (all: %v)", key, got[key], want, got)
		}
	}
	if v, _ := got["version"].(string); !strings.HasPrefix(v, "v18.") {
		t.Errorf("version %v", got["version"])
	}
	if abi, _ := got["abi"].(string); !strings.HasPrefix(img.ABI, "node"+abi+"-glibc") {
		t.Errorf("abi %v, label %s", got["abi"], img.ABI)
	}
	if got := run(); got["error"] == nil {
		t.Errorf("a server without a known CA was trusted: %v", got)
	}
}

func TestRealNodeBuild(t *testing.T) {
	_, built := realImage(t, "build/nodejs18")
	if err := validate.Image(built, validate.Fast); err != nil {
		t.Error(err)
	}
	root := unpack(t, built)
	got := inside(t, root, nil, []string{"NPM_CONFIG_UPDATE_NOTIFIER=false"}, "/bin/sh", "-ec", `
		cd /tmp; node --version; npm --version; git init -q r; cd r; git config user.email a@b; git config user.name a
		echo 'a b' > f; git add f; git commit -q -m x; git log --format=%s | sed s/x/committed/
		tar -cf - f | gzip -9 | gunzip | tar -tf - ; awk '{print $2}' f | grep b; find . -name f; printf 'p' | xargs echo; locale -a | grep C.utf8
		echo '{"name":"t","version":"1.0.0"}' > package.json; npm pack --silent`)
	want := "10.9.2\ncommitted\nf\nb\n./f\np\nC.utf8\nt-1.0.0.tgz\n"
	if first, rest, _ := strings.Cut(got, "\n"); !strings.HasPrefix(first, "v18.") || rest != want {
		t.Errorf("got\n%s\nwant v18 and\n%s", got, want)
	}
}

func TestRealPythonBase(t *testing.T) {
	_, built := realImage(t, "base/python3.11")
	got := inside(t, unpack(t, built), nil, nil, "/usr/bin/python3", "-c", `
import ssl, sys, os, sqlite3, ctypes, zoneinfo, bz2, lzma, hashlib, getpass
ctypes.CDLL("libstdc++.so.6") # many wheels need it
print(sys.version_info[:2], os.getuid(), getpass.getuser(), len(ssl.create_default_context().get_ca_certs()) > 100, zoneinfo.ZoneInfo("Asia/Shanghai"), sys.getfilesystemencoding())`)
	if want := "(3, 11) 65532 nonroot True Asia/Shanghai utf-8\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestRealJavaBase(t *testing.T) {
	_, built := realImage(t, "base/java17")
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("needs namespaces: java finds its libraries through /proc: " + why)
	}
	root := unpack(t, built)
	got := inside(t, root, nil, nil, "/usr/lib/jvm/default/bin/keytool", "-list", "-cacerts", "-storepass", "changeit")
	if !strings.Contains(got, "Keystore type: JKS") || strings.Count(got, "trustedCertEntry") < 100 {
		t.Errorf("trust store: %.400s", got)
	}
}

// TestRealPairs: what a build image compiles or installs, its base loads.
func TestRealPairs(t *testing.T) {
	for _, runtime := range []string{"nodejs18", "python3.11", "java17"} {
		t.Run(runtime, func(t *testing.T) {
			base, built := realImage(t, "base/"+runtime)
			if err := validate.Image(built, validate.Fast); err != nil {
				t.Error(err)
			}
			if other, _ := realImage(t, "build/"+runtime); other.ABI != base.ABI {
				t.Errorf("base has abi %s, build image %s", base.ABI, other.ABI)
			}
		})
	}
}

func TestRealPythonBuild(t *testing.T) {
	_, built := realImage(t, "build/python3.11")
	got := inside(t, unpack(t, built), nil, []string{"PIP_DISABLE_PIP_VERSION_CHECK=1"}, "/bin/sh", "-ec", `
		cd /tmp; mkdir p; echo 'X = "installed"' > p/x.py
		printf 'from setuptools import setup\nsetup(name="x", version="1", py_modules=["x"])\n' > p/setup.py
		python3 -m pip install -q --no-index --no-build-isolation --no-deps --break-system-packages --root /tmp/r ./p
		PYTHONPATH=/tmp/r/usr/local/lib/python3.11/dist-packages python3 -c 'import x; print(x.X)'`)
	if got != "installed\n" {
		t.Errorf("got %q", got)
	}
}

func TestRealJavaBuild(t *testing.T) {
	_, built := realImage(t, "build/java17")
	if mode, why := sandbox.Detect(t.Context()); mode == sandbox.None {
		t.Skip("needs namespaces: java finds its libraries through /proc: " + why)
	}
	got := inside(t, unpack(t, built), nil, []string{"JAVA_HOME=/usr/lib/jvm/default"}, "/bin/sh", "-ec", `
		cd /tmp; echo 'class A { public static void main(String[] a) { System.out.println("compiled"); } }' > A.java
		javac A.java; java -cp . A; jar cf a.jar A.class; mvn -q -v | head -1 | cut -c1-14; mvn -v | sed -n 's/^Java version: \([0-9]*\).*/\1/p'`)
	if want := "compiled\n"; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "17\n") {
		t.Errorf("got %q", got)
	}
}
