package kaniko_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuroko-faas/kuroko/builder/kaniko"
)

// Every row is something that kaniko would do quietly in another way than its
// author expects, or that can't work here. The message names line and reason.
func TestRefused(t *testing.T) {
	tests := []struct {
		name, dockerfile string
		want             []string // beginnings of the problems
	}{
		{"copy leaves the context", "FROM scratch\nCOPY ../.docker/config.json /x\n", []string{"line 2, column 6: COPY ../.docker/config.json leaves the build context"}},
		{"copy leaves by a detour", "FROM scratch\nCOPY a/../../x /x\n", []string{"line 2, column 6: COPY a/../../x leaves"}},
		{"absolute with dots", "FROM scratch\nADD /../x /x\n", []string{"line 2, column 5: ADD /../x leaves"}},
		{"copy through a link", "FROM scratch\nCOPY evil/kaniko/.docker/config.json /x\n", []string{"line 2, column 6: COPY evil/kaniko/.docker/config.json leaves the build context through the symbolic link evil -> /"}},
		{"copy through a relative link", "FROM scratch\nCOPY up/etc/passwd /x\n", []string{"line 2, column 6: COPY up/etc/passwd leaves the build context through the symbolic link up -> ../.."}},
		{"a link out as source", "FROM scratch\nCOPY bad/abs /x\n", []string{"line 2, column 6: COPY bad/abs leaves the build context"}},
		{"a pattern that finds a link out", "FROM scratch\nCOPY dir/a \\\n  ev* /x/\n", []string{"line 2, column 3: COPY evil leaves"}},
		{"missing source", "FROM scratch\n\nCOPY missing.txt /x\nCOPY *.none /x\n", []string{"line 3, column 6: COPY missing.txt: not in the build context", "line 4, column 6: COPY *.none: no file matches"}},
		{"run with mounts", "FROM x AS me\nRUN --mount=type=ssh true\nRUN --mount=target=/c,rw true\nRUN --mount=type=cache,target=/c,from=x true\nRUN --mount=type=tmpfs,target=/ true\n" +
			"RUN --mount=type=tmpfs,target=/proc/x true\nRUN --mount=source=../x,target=/c true\nRUN --mount=from=1,target=/c true\nRUN --mount=from=me,target=/c true\n" +
			"RUN --mount=type=tmpfs,target=/c/$NOPE true\nWORKDIR $NOPE\nRUN --mount=type=tmpfs,target=c true\nRUN --mount=type=cache,target=/c,ro true\nRUN --mount=target=/c,source=none true\nRUN --mount=type=tmp,target=/c true\n", []string{
			"line 2, column 5: RUN --mount=type=ssh: is not possible here: a job has no agent", "line 3, column 5: RUN --mount=type=bind: rw is not possible", "line 4, column 5: RUN --mount=type=cache: from and source",
			"line 5, column 5: RUN --mount: / can't be a target", "line 6, column 5: RUN --mount: target=/proc/x lies in /proc", "line 7, column 5: RUN --mount: source=../x leaves the build context",
			"line 8, column 5: RUN --mount: from=1: there is no such stage", "line 9, column 5: RUN --mount: from=me: there is no such stage", "line 10, column 5: RUN --mount: the value of NOPE",
			"line 12, column 5: RUN --mount: target=c is below a WORKDIR that is not known", "line 13, column 5: RUN --mount=type=cache: a cache that can't be written", `line 15, column 5: RUN --mount: unsupported mount type "tmp"`}},
		{"a mount of what is not there", "FROM x\nRUN --mount=target=/c,source=none true\n", []string{"line 2, column 5: RUN none: not in the build context"}},
		{"a mount through a link", "FROM x\nRUN --mount=target=/c,source=evil/etc true\n", []string{"line 2, column 5: RUN evil/etc leaves the build context through the symbolic link"}},
		{"run with network", "FROM scratch\nRUN --network=none true\n", []string{"line 2, column 5: RUN --network"}},
		{"run here-document with a program", "FROM scratch\nRUN <<EOF\n#!/bin/sh\necho hi\nEOF\n", []string{"line 2, column 1: RUN with a here-document that begins with #!"}},
		{"add from the network", "FROM scratch\nADD https://example.com/x.tar /x\nADD git@example.com:a/b.git /y\nADD HTTP://example.com/z /z\n", []string{"line 2, column 5: ADD https://example.com/x.tar: fetching", "line 3, column 5: ADD git@", "line 4, column 5: ADD HTTP:"}},
		{"options that are ignored", "FROM scratch\nADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d dir/a /x\n", []string{"line 2, column 1: ADD --keep-git-dir and --checksum"}},
		{"several files to one", "FROM scratch\nCOPY dir/a dir/b /x\n", []string{"line 2, column 18: COPY of several files: the target /x must be a folder"}},
		{"options that the parser knows as experiments", "FROM scratch\nCOPY --parents dir/a /x/\nCOPY --exclude=x dir /x/\n", []string{"line 2: unknown flag: --parents", "line 3: unknown flag: --exclude"}},
		{"from a later stage", "FROM scratch\nCOPY --from=1 /a /b\nFROM scratch\n", []string{"line 2, column 6: COPY --from=1"}},
		{"from a later stage that is needed", "FROM scratch AS a\nCOPY --from=1 /a /b\nFROM a\n", []string{"line 2, column 6: COPY --from=1: there is no such stage"}},
		{"onbuild", "FROM scratch\nONBUILD RUN true\n", []string{"line 2, column 1: ONBUILD"}},
		{"places that are lost", "FROM scratch\nWORKDIR /kaniko/app\nCOPY dir /proc/x\nWORKDIR /kanikox\nVOLUME /dev/x\n", []string{"line 2, column 9: WORKDIR /kaniko/app", "line 3, column 10: COPY to /proc/x", "line 5, column 8: VOLUME /dev/x"}},
		{"unknown variable in FROM", "FROM x:$NOPE\n", []string{"line 1, column 6: FROM x:$NOPE: the value of NOPE is not known"}},
		{"another platform", "FROM --platform=linux/s390x scratch\n", []string{"line 1, column 6: FROM --platform=linux/s390x"}},
		{"another escape", "# escape=`\nFROM scratch\n", []string{"line 1, column 1: another escape character"}},
		{"all syntax errors at once", "FROM scratch\nEXPSE 1\nRUN echo \\\n a\nCOPY onlyone\n", []string{"line 2: unknown instruction: EXPSE", "line 5: COPY requires"}},
		{"empty", "# nothing\n", []string{"line 1: file with no instructions"}},
		{"no from", "ARG A\n", []string{"there is no FROM"}},
		{"run first", "RUN true\nFROM scratch\n", []string{"line 1: an instruction before"}},
		{"no base", "ARG B=\nFROM $B\n", []string{"line 2, column 1: FROM names no image"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := lint(t, tt.dockerfile, nil)
			var p kaniko.Problems
			if !errors.As(err, &p) {
				t.Fatalf("got %v, want problems", err)
			}
			lines := strings.Split(p.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("got %q, want %q", lines, tt.want)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("got %q, want %q…", lines[i], want)
				}
			}
		})
	}
}

func TestAccepted(t *testing.T) {
	for name, dockerfile := range map[string]string{
		"variables":    "ARG V=1\nFROM base:$V\nARG V\nARG JAR=dir/${V:+a}\nENV D=dir\nCOPY $JAR ${D}/b ./\n",
		"patterns":     "FROM x\nCOPY dir/[ab] d?r/a /x/\n",
		"everything":   "FROM x\nCOPY . /app\n",
		"owner root":   "FROM x\nCOPY --chown=root:root --chmod=755 dir/a /x\n",
		"lower case":   "from x as main\ncopy dir /d\nrun true\nonly=\n",
		"platform":     "ARG TARGET=linux/amd64\nFROM x\nSHELL [\"/bin/sh\", \"-c\"]\nHEALTHCHECK NONE\nSTOPSIGNAL 9\nMAINTAINER me\n",
		"relative dot": "FROM x\nCOPY ./dir/../dir/a /x\n",
		"env of base":  "FROM x\nENV PATH=$PATH:/x\nCOPY $HOME/dir $PLACE/x\nWORKDIR $HOME\n",
		"links inside": "FROM x\nCOPY dir/rel /x\nCOPY bad /x\n",
		"stages":       "FROM x AS build\nRUN true\nFROM y\nCOPY --from=build /a /b\nCOPY --from=BUILD --chown=1000:1000 --link /a /b\nCOPY --from=busybox /bin/sh /sh\n",
		"documents":    "FROM x\nRUN <<EOF\necho hi\nEOF\nCOPY <<a <<b /x/\n1\na\n2\nb\n",
		"volume":       "FROM x\nVOLUME /data\n",
		"mounts": "FROM x AS one\nARG D=dir\nWORKDIR rel\nRUN --mount=type=secret,id=T --mount=type=cache,target=/c/$D,sharing=locked --mount=type=tmpfs,target=t,size=1g --mount=source=$D,target=/s true\n" +
			"FROM one\nRUN --mount=from=one,source=/a,target=b --mount=type=bind,from=busybox,target=/bb --mount=type=secret,env=T,id=T true\n",
	} {
		t.Run(name, func(t *testing.T) {
			dockerfile = strings.Replace(dockerfile, "only=\n", "", 1)
			if err := lint(t, dockerfile, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBaseAndTarget(t *testing.T) {
	d, err := kaniko.Parse([]byte("ARG R=registry.example\nARG V\nFROM ${R}/base:${V:-1} AS app\n"), map[string]string{"V": "2"}, "app")
	if err != nil || len(d.Bases) != 1 || d.Bases[0] != (kaniko.Base{Ref: "registry.example/base:2", Line: 3, Column: 6, From: true}) {
		t.Errorf("base %+v, %v", d, err)
	}
	// Only what the target needs counts.
	d, err = kaniko.Parse([]byte("FROM a AS one\nFROM b AS two\nCOPY --from=c /x /x\nFROM two\nCOPY --from=one /y /y\nFROM d\n"), nil, "2")
	if err != nil || len(d.Bases) != 3 || d.Bases[0].Ref != "a" || d.Bases[1].Ref != "b" || d.Bases[2].Ref != "c" || d.Bases[2].From {
		t.Errorf("bases %+v, %v", d, err)
	}
	if _, err := kaniko.Parse([]byte("FROM scratch AS app\n"), nil, "other"); err == nil || !strings.Contains(err.Error(), `no stage "other"`) {
		t.Errorf("target: %v", err)
	}
}

// lint checks dockerfile against a context with every kind of link in it.
func lint(t *testing.T, dockerfile string, args map[string]string) error {
	t.Helper()
	d, err := kaniko.Parse([]byte(dockerfile), args, "")
	if err != nil {
		return err
	}
	dir := t.TempDir()
	for _, sub := range []string{"dir", "bad"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"dir/a", "dir/b"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"evil": "/", "up": "../..", "dir/rel": "a", "bad/abs": "/etc/shadow", "bad/rel": "../../etc"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return d.Check(root.FS(), nil, "Dockerfile")
}

func FuzzParse(f *testing.F) {
	f.Add("FROM scratch\nCOPY a /b\n", "X")
	f.Add("ARG A=1\nFROM x:$A AS b\nENV P=${A:-2} Q=$P\nCOPY [\"a b\", \"/c\"]\nADD --chmod=1 x* ./\n", "A")
	f.Add("# escape=`\nFROM x\nRUN <<E\nE\n", "")
	f.Add("FROM x\nCOPY ${A#*} ${B%%?} ${C/x/y} /\n", "A")
	f.Fuzz(func(t *testing.T, text, arg string) {
		d, err := kaniko.Parse([]byte(text), map[string]string{arg: "v"}, "")
		var p kaniko.Problems
		if err != nil && !errors.As(err, &p) {
			t.Errorf("an error without problems: %v", err)
		}
		if err == nil {
			root, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			_ = d.Check(root.FS(), nil, "Dockerfile")
		}
	})
}
