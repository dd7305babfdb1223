package stages

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/project"
)

// What a plan says about a Dockerfile: all at once, with places, and what is
// only advice as that.
func TestDockerfileFindings(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("a", 64)
	own, build := "registry.example/base/nodejs18"+digest, "registry.example/build/nodejs18"+digest
	policy, err := bundle.ParsePolicy([]byte("version: 1\nbases: [\"registry.example/ok/*\"]\nunpinned: [\"registry.example/ok/float\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, dockerfile string
		early            bool
		refused, advice  []string // beginnings
	}{
		{name: "the bundle's base", dockerfile: "ARG FAAS_BASE\nFROM $FAAS_BASE\nCOPY index.js /app/\n"},
		{name: "the bundle's build image", dockerfile: "ARG FAAS_BUILD_IMAGE\nARG FAAS_BASE\nFROM $FAAS_BUILD_IMAGE AS made\nFROM $FAAS_BASE\nCOPY --from=made /a /app/\n"},
		{name: "scratch and stages", dockerfile: "FROM scratch AS a\nFROM a\n"},
		{name: "by digest", dockerfile: "FROM registry.example/ok/x" + digest + "\n"},
		{name: "not on the list", dockerfile: "FROM elsewhere/x" + digest + "\n", refused: []string{"line 1, column 6: FROM elsewhere/x" + digest + ": the platform's policy does not allow"}},
		{name: "by tag", dockerfile: "FROM registry.example/ok/x:1\n", refused: []string{"line 1, column 6: FROM registry.example/ok/x:1: name the image by digest"}},
		{name: "may float", dockerfile: "FROM registry.example/ok/float:1\n", advice: []string{"line 1, column 6: FROM registry.example/ok/float:1: an image of equal"}},
		{name: "files of an image", dockerfile: "FROM scratch\nCOPY --from=evil:1 /a /a\n", refused: []string{"line 2, column 13: COPY --from=evil:1: the platform's"}},
		{name: "a stage that nobody needs", dockerfile: "FROM evil AS unused\nFROM scratch\n"},
		{
			name:       "all at once",
			dockerfile: "ARG FAAS_BASE\nFROM $FAAS_BASE\nCOPY missing.js tests/a.js /app/\nRUN npm ci\nCOPY --from=evil /a /a\nCMD x\n",
			refused:    []string{"line 3, column 6: COPY missing.js: not in the build context", "line 3, column 17: COPY tests/a.js: left out of the build context", "line 5, column 13: COPY --from=evil"},
			advice:     []string{"line 4, column 5: RUN npm ci: npm's cache", "line 6, column 1: JSON arguments"},
		},
		{name: "before build.command", dockerfile: "FROM scratch\nCOPY dist /app\n", early: true},
		{name: "after build.command", dockerfile: "FROM scratch\nCOPY dist /app\n", refused: []string{"line 2, column 6: COPY dist: not in"}},
		{name: "what kaniko can't", dockerfile: "FROM scratch\nRUN --mount=type=ssh cat\nADD http://example.com/x /x\n", refused: []string{"line 2, column 5: RUN --mount", "line 3, column 5: ADD http://example.com/x: fetching"}},
		{name: "secrets", dockerfile: "ARG FAAS_BASE\nFROM $FAAS_BASE\nRUN --mount=type=secret,id=TOKEN --mount=type=secret,id=maybe cat\nRUN --mount=type=secret,id=must,required cat\n",
			refused: []string{"line 4, column 5: RUN --mount=type=secret: build.secrets does not list must"}, advice: []string{"line 3, column 5: RUN --mount=type=secret: build.secrets does not list maybe, so"}},
		{name: "files of an image that is mounted", dockerfile: "FROM scratch\nRUN --mount=from=evil:1,target=/x cat\n", refused: []string{"line 2, column 18: RUN --mount from=evil:1: the platform's"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := look{
				tree: fstest.MapFS{"Dockerfile": {Data: []byte(tt.dockerfile)}, "index.js": {}, "tests/a.js": {}}, file: "Dockerfile", paths: []string{"index.js"},
				args: map[string]string{argBase: own, argBuild: build}, own: map[string]bool{own: true, build: true}, policy: policy, early: tt.early, secrets: []string{"TOKEN"},
			}
			found, err := l.findings()
			if err != nil {
				t.Fatal(err)
			}
			var refused, advice []string
			for _, f := range found {
				if f.Advice {
					advice = append(advice, f.String())
				} else {
					refused = append(refused, f.String())
				}
			}
			if !matches(refused, tt.refused) || !matches(advice, tt.advice) {
				t.Errorf("refused\n%q\nwant\n%q\nadvice\n%q\nwant\n%q", refused, tt.refused, advice, tt.advice)
			}
			plan := BuildPlan{Images: []PlannedImage{{Name: "a", Dockerfile: "Dockerfile", Findings: found}, {Name: "b", Dockerfile: "Dockerfile", Findings: found}}}
			if err := plan.refused(); (err != nil) != (len(refused) > 0) || err != nil && strings.Count(err.Error(), "Dockerfile: line") != len(refused) {
				t.Errorf("the plan's error: %v", err)
			}
			if n := strings.Count(plan.String(), "Dockerfile: line"); n != len(found) {
				t.Errorf("the plan tells %d of %d findings:\n%s", n, len(found), plan)
			}
			if n := strings.Count((Plans{Project: &project.Project{}, Build: plan}).Markdown(), "Dockerfile: line"); n != len(found) {
				t.Errorf("as Markdown: %d of %d findings", n, len(found))
			}
		})
	}
	missing := look{tree: fstest.MapFS{}, file: "Dockerfile"}
	if _, err := missing.findings(); err == nil || !strings.Contains(err.Error(), "read Dockerfile") {
		t.Errorf("without the file: %v", err)
	}
}

func matches(got, want []string) bool {
	return slices.EqualFunc(got, want, strings.HasPrefix)
}

// Only protected refs write what protected refs read.
func TestInstructionCache(t *testing.T) {
	plan := &BuildPlan{Repository: "registry.example/team/app"}
	s := &state{Runner: &Runner{}}
	s.Job.Protected = true
	c, err := s.instructionCache(plan)
	if err != nil || len(c.Read) != 1 || c.Write.String() != "registry.example/team/app/cache" || c.Read[0].String() != c.Write.String() {
		t.Errorf("protected: %+v, %v", c, err)
	}
	s.Job.Protected = false
	c, err = s.instructionCache(plan)
	if err != nil || len(c.Read) != 2 || c.Write.String() != "registry.example/team/app/cache-unprotected" || c.Read[0].String() != "registry.example/team/app/cache" {
		t.Errorf("not protected: %+v, %v", c, err)
	}
}
