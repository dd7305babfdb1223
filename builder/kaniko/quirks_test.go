package kaniko_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// quirk is a row of the table of what kaniko 1.24 does in another way than
// Docker. Those that are refused before anything runs are in
// dockerfile_test.go.
type quirk struct {
	name       string
	dockerfile string
	files      fstest.MapFS
	// want are files above the base: content, or the target of a link; "-" is
	// a file that must not be there.
	want map[string]string
	// modes and owners of some: "755 0:0".
	stat map[string]string
	// refused is what the error says instead.
	refused string
	// root: only right where the builder is root, else refused with rootless.
	rootless string
}

var quirks = []quirk{
	{
		name:       "RUN with here-documents",
		dockerfile: "FROM BASE\nRUN <<EOF\necho one > /a\necho \"$0 two\" > /b\nEOF\nRUN cat <<X > /c && cat <<-Y > /d\nthree $HOME\nX\n\tfour\n\tY\n",
		want:       map[string]string{"/a": "one\n", "/b": "/bin/sh two\n", "/c": "three /root\n", "/d": "four\n"},
	},
	{
		name:       "RUN without a shell",
		dockerfile: "FROM scratch\nCOPY x /\nRUN echo\n",
		files:      fstest.MapFS{"x": text("x")},
		refused:    "line 3: RUN echo: this stage's image has no shell",
	},
	{
		name:       "COPY of here-documents",
		dockerfile: "FROM BASE\nARG WHO=me\nCOPY <<EOF /x\nhi $WHO \"q\"\nEOF\nCOPY <<'a' <<b /dir/\n$WHO\na\n2\nb\n",
		want:       map[string]string{"/x": "hi me \"q\"\n", "/dir/a": "$WHO\n", "/dir/b": "2\n"},
	},
	{
		name:       "COPY of a link copies what it leads to",
		dockerfile: "FROM BASE\nCOPY link /file\nCOPY folder /dir\nCOPY l* /many/\n",
		files:      fstest.MapFS{"real": text("r"), "link": symlink("real"), "d/x": text("x"), "folder": symlink("d")},
		want:       map[string]string{"/file": "r", "/dir/x": "x", "/many/link": "r"},
	},
	{
		name:       "COPY of a folder keeps its links, and adds nothing that they lead to",
		dockerfile: "FROM BASE\nCOPY d /d\n",
		files:      fstest.MapFS{"d/abs": symlink("/etc/shadow"), "d/up": symlink("../../../etc/passwd"), "d/rel": symlink("f"), "d/f": text("f")},
		want:       map[string]string{"/d/abs": "/etc/shadow", "/d/up": "../../../etc/passwd", "/d/rel": "f", "/etc/shadow": "-", "/etc/passwd": "-"},
	},
	{
		name:       "new parents belong to root",
		dockerfile: "FROM BASE\nCOPY --chown=1000:1001 --chmod=640 a /data/deep/a\nCOPY --chown=nonroot d /home/\n",
		files:      fstest.MapFS{"a": text("a"), "d/s/f": text("f")},
		want:       map[string]string{"/data/deep/a": "a"},
		stat:       map[string]string{"/data": "755 0:0", "/data/deep": "755 0:0", "/data/deep/a": "640 1000:1001", "/home": "755 0:0", "/home/s": "755 65532:65532", "/home/s/f": "644 65532:65532"},
		rootless:   "line 2: COPY --chown=1000:1001 --chmod=640 a /data/deep/a: --chown=1000:1001 is not possible without root",
	},
	{
		name:       "folders that kaniko loses",
		dockerfile: "FROM BASE\nWORKDIR /workspace\nVOLUME /vol\nCOPY a .\nRUN mkdir -p /var/run/me /vol && echo y > /var/run/me/y && echo v > /vol/v && echo t > /tmp/t\n",
		files:      fstest.MapFS{"a": text("a")},
		want:       map[string]string{"/workspace/a": "a", "/run/me/y": "y\n", "/vol/v": "v\n", "/tmp/t": "t\n"},
		stat:       map[string]string{"/tmp": "1777 0:0"},
	},
	{
		name:       "a folder of the sandbox that only a variable names",
		dockerfile: "FROM BASE\nENV P=$FROM_BASE\nRUN true\nWORKDIR /proc/$P\n",
		refused:    "line 4: WORKDIR /proc/$P: what is put into /proc never reaches the image",
	},
	{
		name:       "writing where the sandbox has its own files fails",
		dockerfile: "FROM BASE\nRUN echo x > /etc/hosts\n",
		refused:    "line 2: RUN echo x > /etc/hosts exited with code 2",
	},
	{
		name:       "extended attributes",
		dockerfile: "FROM BASE\nRUN echo x > /x && setfattr -n user.foo -v bar /x\n",
		refused:    "/x has the extended attribute user.foo",
	},
	{
		name:       "links, removed files, modes and names",
		dockerfile: "FROM BASE\nCOPY . /c/\nRUN ln /c/a /c/hard; chmod 6755 /c/a; rm /etc/doomed; rm -r /c/gone; ln -s nowhere /c/dangling; touch -- /c/-rf\n",
		files: fstest.MapFS{
			"a": text("a"), "gone/x": text("x"), "中文/文件.txt": text("nfc"), "e\u0301.txt": text("nfd"), "\u00e9.txt": text("nfc"),
			"-n": text("dash"), "new\nline": text("nl"), "sp ace$HOME'\"": text("sp"), "[id].js": text("next"),
		},
		want: map[string]string{
			"/c/a": "a", "/etc/.wh.doomed": "", "/c/.wh.gone": "", "/c/dangling": "nowhere", "/c/-rf": "", "/c/中文/文件.txt": "nfc",
			"/c/e\u0301.txt": "nfd", "/c/\u00e9.txt": "nfc", "/c/-n": "dash", "/c/new\nline": "nl", "/c/sp ace$HOME'\"": "sp", "/c/[id].js": "next",
		},
		stat: map[string]string{"/c/a": "6755 0:0"},
	},
	{
		name: "changes of changes",
		dockerfile: "FROM BASE\nRUN mkdir -p /d/s/t /etc/sub && echo 1 > /d/s/f && echo 1 > /d/g && touch -d @9 /d/g && echo a > /d/twice && echo b > /d/s/t/x\n" +
			"RUN rm -r /d/s && mkdir /d/s && echo 2 > /d/s/n && echo 2 > /d/g && touch -d @9 /d/g && rm /d/twice\n" +
			"COPY a /d/\nRUN rm /d/a && echo again > /d/twice && ln /d/g /d/h && mkdir /d/s/f\n",
		files: fstest.MapFS{"a": text("a")},
		want: map[string]string{"/d/s/.wh.f": "", "/d/s/.wh.t": "", "/d/s/n": "2\n", "/d/g": "2\n", "/d/.wh.twice": "", "/d/twice": "again\n", "/d/.wh.a": "", "/d/h": "d/g",
			"/etc/sub": "", "/etc": "", "/etc/doomed": "-", "/usr": "-"},
	},
	{
		name:       "pipes and devices can't be in an image",
		dockerfile: "FROM BASE\nRUN mkfifo /p\n",
		refused:    "line 2: RUN mkfifo /p: the Dockerfile makes something that can't be in an image",
	},
	{
		name:       "a failing command",
		dockerfile: "FROM BASE\n\nRUN exit 42\n",
		refused:    "line 3: RUN exit 42 exited with code 42",
	},
	{
		name: "several stages",
		dockerfile: "ARG V=1\nFROM BASE AS build\nARG V\nENV SEEN=$V\nRUN mkdir -p /out/d && echo $V > /out/v && ln -s /out/v /link && ln -s /out /dirlink && echo s > /out/d/s && chmod 4750 /out/d/s\n" +
			"FROM build AS more\nRUN echo more $V $SEEN > /out/more\n" +
			"FROM BASE AS never\nRUN exit 1\n" +
			"FROM BASE\nRUN echo \"[$V]\" > /scope\nCOPY --from=build /link /copied\nCOPY --from=more /dirlink/m* /dirlink/d /x/\nCOPY --from=0 /out /y\n",
		want: map[string]string{"/copied": "1\n", "/x/more": "more 1 1\n", "/x/s": "s\n", "/y/v": "1\n", "/y/d/s": "s\n", "/scope": "[]\n", "/out": "-", "/link": "-", "/etc/passwd": "-"},
		stat: map[string]string{"/y/d/s": "4750 0:0"},
	},
	{
		name:       "ADD unpacks archives and copies other files",
		dockerfile: "FROM BASE\nADD a.tar.gz plain.gz b.tar /in/\n",
		files:      fstest.MapFS{"a.tar.gz": {Data: zipped(tarOf("one", "1"))}, "b.tar": {Data: tarOf("two", "2")}, "plain.gz": {Data: zipped([]byte("no tar"))}},
		want:       map[string]string{"/in/one": "1", "/in/two": "2", "/in/plain.gz": string(zipped([]byte("no tar"))), "/in/b.tar": "-"},
	},
	{
		name:       "commands as another user",
		dockerfile: "FROM BASE\nRUN mkdir -m 777 /w\nUSER nonroot\nRUN id -u > /w/id\n",
		want:       map[string]string{"/w/id": "65532\n"},
		stat:       map[string]string{"/w/id": "644 65532:65532"},
		rootless:   "line 4: RUN id -u > /w/id: RUN as USER nonroot is not possible without root",
	},
	{
		name:       "USER that says root",
		dockerfile: "FROM BASE\nUSER 0:0\nRUN id -u > /id\nUSER root\nRUN id -g >> /id\n",
		want:       map[string]string{"/id": "0\n0\n"},
		stat:       map[string]string{"/id": "644 0:0"},
	},
	{
		name:       "a target over a link and over a file",
		dockerfile: "FROM BASE\nRUN mkdir /real && ln -s /real /ln && echo old > /f && ln -s /f /lf\nCOPY a /ln/\nCOPY a /lf\n",
		files:      fstest.MapFS{"a": text("a")},
		want:       map[string]string{"/real/a": "a", "/lf": "a", "/f": "old\n"},
	},
}

func TestQuirkTable(t *testing.T) {
	each(t, func(t *testing.T, l *lab) {
		for _, q := range quirks {
			t.Run(q.name, func(t *testing.T) {
				if _, err := exec.LookPath(xattrTool); err != nil && strings.Contains(q.dockerfile, xattrTool) {
					t.Skipf("needs %s on this machine", xattrTool)
				}
				if q.rootless != "" && l.mode != "root" {
					q.refused = q.rootless
				}
				res, err := l.build("quirk "+q.name, strings.ReplaceAll(q.dockerfile, "FROM BASE", "FROM "+l.base), q.files)
				if q.refused != "" {
					if err == nil || !strings.Contains(err.Error(), q.refused) {
						t.Errorf("got %v, want %q\n%s", err, q.refused, l.log)
					}
					return
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, l.log)
				}
				img, err := remote.Image(res.Ref)
				if err != nil {
					t.Fatal(err)
				}
				q.check(t, newFiles(t, img, 1))
			})
		}
	})
}

func (q quirk) check(t *testing.T, files map[string]*tar.Header) {
	t.Helper()
	for name, want := range q.want {
		h := files[name]
		if (h == nil) != (want == "-") || h != nil && h.Linkname != want {
			t.Errorf("%q: got %+v, want %q; there are %q", name, h, want, slices.Sorted(maps.Keys(files)))
		}
	}
	for name, want := range q.stat {
		h := files[name]
		if h == nil {
			t.Errorf("%q is missing", name)
		} else if got := stat(h); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func stat(h *tar.Header) string {
	return strings.Join([]string{octal(h.Mode), " ", decimal(h.Uid), ":", decimal(h.Gid)}, "")
}

func symlink(to string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(to), Mode: os.ModeSymlink | 0o777}
}

func tarOf(name, body string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
	_, _ = w.Write([]byte(body))
	_ = w.Close()
	return b.Bytes()
}

func zipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}
