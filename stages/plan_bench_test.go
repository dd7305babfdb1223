package stages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/worktree"
	"github.com/kuroko-faas/kuroko/project"
)

// manyFunctions is a repository of n functions, each with its own folder of
// files, deployed one by one.
func manyFunctions(n, filesEach int, mode string) map[string]string {
	var b strings.Builder
	b.WriteString("version: 1\nservice: many\nprovider: {runtime: nodejs18}\n" + mode + "\nfunctions:\n")
	files := map[string]string{"package.json": "{}", "lib/shared.js": "shared"}
	for i := range n {
		fmt.Fprintf(&b, "  f%d: {handler: functions/f%d/index.handler, source: functions/f%d, events: [{http: {path: /f%d}}]}\n", i, i, i, i)
		for j := range filesEach {
			at := fmt.Sprintf("functions/f%d/file%d.js", i, j)
			if j == 0 {
				at = fmt.Sprintf("functions/f%d/index.js", i)
			}
			files[at] = fmt.Sprintf("// function %d, file %d\n%s", i, j, strings.Repeat("exports.x = 1;\n", 60))
		}
	}
	files["faas.yml"] = b.String()
	return files
}

// many is the input of both plans for n functions.
func many(tb testing.TB, n int) (BuildInput, DeployInput) {
	tb.Helper()
	files := manyFunctions(n, 5, independent)
	most := project.Policy{Tiers: map[project.Tier]project.TierPolicy{project.Standard: {Limits: project.Limits{MaxFunctions: 5000}}}}
	p, err := project.Parse([]byte(files["faas.yml"]), project.Options{Runtimes: []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}}, Policy: most})
	if err != nil {
		tb.Fatal(err)
	}
	in := buildInput(p)
	for f := range files {
		in.Files = append(in.Files, worktree.File{Path: f, Sum: sumOf(f)})
	}
	plan, err := PlanBuild(in)
	if err != nil {
		tb.Fatal(err)
	}
	d := DeployInput{Job: ci.Job{}, Scope: deployer.Scope{Service: "many"}, Project: p, Build: plan, Unbuilt: true, Images: map[string]name.Digest{}}
	first, err := PlanDeploy(d)
	if err != nil {
		tb.Fatal(err)
	}
	rel := deployer.Release{ID: "r1"}
	for _, u := range first.Deploy.Units {
		rel.Units = append(rel.Units, deployer.Live{Unit: u.Unit, Revision: u.RevisionName(1), Spec: u, Inputs: first.Deploy.Inputs[u.Name]})
	}
	state := asLive(rel)
	d.Observed = &state
	in.Live = &rel
	return in, d
}

func plansOf(tb testing.TB, in BuildInput, d DeployInput) {
	var err error
	if d.Build, err = PlanBuild(in); err != nil {
		tb.Fatal(err)
	}
	if _, err := PlanDeploy(d); err != nil {
		tb.Fatal(err)
	}
}

// Both plans against a live release, without reading files: time and memory
// per function stay what they are.
func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{20, 200, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			in, d := many(b, n)
			b.ReportAllocs()
			for b.Loop() {
				plansOf(b, in, d)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/function")
		})
	}
}

// Ten times the functions are ten times the work, counted in allocations.
func TestPlanIsLinear(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: plans 2,000 functions")
	}
	allocs := func(n int) float64 {
		in, d := many(t, n)
		return testing.AllocsPerRun(1, func() { plansOf(t, in, d) })
	}
	small, large := allocs(200), allocs(2000)
	if large > 11*small {
		t.Errorf("%.0f allocations for 200 functions, %.0f for 2,000", small, large)
	}
}

// A plan of 200 functions in 5,000 files, and git status of the same tree, by
// turns. The registry answers at once: its way is not ours to measure.
func BenchmarkPlanAndGitStatus(b *testing.B) {
	if _, err := exec.LookPath("git"); err != nil {
		b.Skip("needs git")
	}
	for _, mode := range []struct{ name, yml string }{{"independent", independent}, {"aggregated", aggregated}} {
		b.Run(mode.name, func(b *testing.B) {
			dir := b.TempDir()
			for n, text := range manyFunctions(200, 25, mode.yml) {
				p := filepath.Join(dir, n)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
					b.Fatal(err)
				}
			}
			git := func(args ...string) {
				cmd := exec.Command("git", args...)
				cmd.Dir = dir
				cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("git %v: %v\n%s", args, err, out)
				}
			}
			git("init", "-q")
			git("add", ".")
			git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "-m", "all")
			time.Sleep(3 * time.Second) // both read files again that are too new
			git("status")

			r := &Runner{Bundle: wholeBundle(), Job: ci.Job{Dir: dir, Environment: "test"}}
			r.Job.Project.Path = "fe/many"
			r.World.Exists = func(context.Context, name.Repository, string) (name.Digest, bool, error) {
				return name.Digest{}, false, nil
			}
			sums := b.TempDir()
			plan := func() (Plans, error) {
				look := worktree.Begin(os.Environ(), dir, sums)
				defer look.Close()
				return r.Plan(b.Context(), Ask{Tree: Look(b.Context(), look, dir)})
			}
			if _, err := plan(); err != nil { // as git status above
				b.Fatal(err)
			}
			var ours, theirs time.Duration
			for b.Loop() {
				start := time.Now()
				plans, err := plan()
				if err != nil {
					b.Fatal(err)
				}
				_ = plans.String()
				middle := time.Now()
				git("status")
				ours, theirs = ours+middle.Sub(start), theirs+time.Since(middle)
			}
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "x-git-status")
			b.ReportMetric(ours.Seconds()*1000/float64(b.N), "plan-ms")
			b.ReportMetric(theirs.Seconds()*1000/float64(b.N), "git-ms")
		})
	}
}
