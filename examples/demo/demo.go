package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/devenv"
	"github.com/kuroko-faas/kuroko/internal/devenv/gitlabci"
	"github.com/kuroko-faas/kuroko/internal/usererr"
)

// demo is one run.
type demo struct {
	mark, target, bin, sandbox string
	keep                       bool
	stdout, stderr             io.Writer
	// client reaches the function's address.
	client *http.Client
}

// result is the last line of stdout.
type result struct {
	Pipeline       string         `json:"pipeline"` // ok
	Target         string         `json:"target"`
	Sandbox        string         `json:"sandbox"`
	Function       string         `json:"function"`
	URL            string         `json:"url"`
	Status         int            `json:"status"`
	Body           string         `json:"body"`
	Bundle         string         `json:"bundle"`
	Image          string         `json:"image"`
	Release        string         `json:"release"`
	PlatformChange platformChange `json:"platformChange"`
	Seconds        float64        `json:"seconds"`
}

// platformChange is what the second pipeline showed. Visible is measured: the
// second answer carries the mark, and the first did not.
type platformChange struct {
	From            string `json:"from"`
	To              string `json:"to"`
	CommitUnchanged bool   `json:"commitUnchanged"`
	Visible         bool   `json:"visible"`
}

// markHeader is where the Node.js adapter shows platform.json's mark.
const markHeader = "X-Faas-Platform"

func (d demo) run(ctx context.Context) (err error) {
	start := time.Now()
	log := ci.Log{W: d.stderr, Now: time.Now}
	checkout, err := devenv.Where()
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(d.bin)
	if err != nil {
		return err
	}
	d.client = http.DefaultClient
	var lab devenv.Lab
	switch d.target {
	case "local":
	case "knative":
		if lab, err = devenv.FindLab(ctx, bin); errors.Is(err, devenv.ErrNoLab) {
			return &usererr.Error{Code: usererr.CodeUnable, What: "use the Knative lab", Err: err, Next: "run: make lab-up"}
		} else if err != nil {
			return err
		}
		d.client = lab.Client()
	default:
		return cliapp.Usagef("--target is local or knative, not %q", d.target)
	}
	dir, err := os.MkdirTemp("", "kuroko-demo-")
	if err != nil {
		return err
	}
	services, stop, err := d.start(ctx, dir)
	if err != nil {
		os.RemoveAll(dir)
		return err
	}
	defer func() {
		if d.keep && err == nil {
			log.Printf("everything keeps running; stop it with: kill %d (that also removes %s)", services.PID, dir)
			return
		}
		stop()
		os.RemoveAll(dir)
	}()
	clusters, env := services.ClustersFile("test", "prod"), map[string]string{}
	if d.target == "knative" {
		services.Registry = lab.Registry
		clusters, env["KUBECONFIG"] = lab.ClustersFile("test", "prod"), lab.Kubeconfig
		log.Printf("object store %s, registry %s, Knative behind %s", services.BucketURL(), services.Registry, lab.Ingress)
	} else {
		log.Printf("object store %s, registry %s, local target %s", services.BucketURL(), services.Registry, services.TargetURL)
		log.Printf("functions run with sandbox: %s%s", services.Sandbox, because(services.WhyNot))
	}

	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	images, err := services.PushBaseImages(ctx, filepath.Join(cache, "kuroko"))
	if err != nil {
		return fmt.Errorf("base images: %w", err)
	}
	platform, err := devenv.NewPlatform(services, checkout, filepath.Join(dir, "job-image"), "stable")
	if err != nil {
		return err
	}
	gitlab, err := devenv.StartGitLab(ctx, checkout, dir)
	var unable *gitlabci.Unable
	if errors.As(err, &unable) {
		return &usererr.Error{Code: usererr.CodeUnable, What: "run a GitLab pipeline", Err: err, Next: "install what is missing and run make demo again"}
	}
	if err != nil {
		return err
	}
	defer gitlab.Close()
	repo, err := gitlab.NewRepository(ctx, "team/hello", filepath.Join(checkout, "examples", "hello-node"), 4711)
	if err != nil {
		return err
	}
	repo.Bin = bin
	env["FAAS_PLATFORM_DIR"] = platform.Dir
	repo.Env = env

	release := devenv.Release{
		Version: "demo-1", Runtimes: images, Why: "first bundle",
		Files: map[string]string{"platform/clusters.yml": clusters},
	}
	var res result
	first, err := d.cycle(ctx, log, "first", platform, release, repo)
	if err != nil {
		return err
	}
	mark, err := json.Marshal(map[string]string{"mark": d.mark})
	if err != nil {
		return err
	}
	release.Version, release.Why = "demo-2", "show "+d.mark
	release.Files["runtimes/node/platform.json"] = string(mark)
	second, err := d.cycle(ctx, log, "second, after a platform change and no commit", platform, release, repo)
	if err != nil {
		return err
	}
	res = second.result
	res.PlatformChange = platformChange{
		From: first.Bundle, To: second.Bundle, CommitUnchanged: first.commit == second.commit,
		Visible: second.shows(d.mark) && !first.shows(d.mark),
	}
	res.Seconds = float64(time.Since(start).Milliseconds()) / 1000
	line, err := json.Marshal(res)
	if err != nil {
		return err
	}
	if !res.PlatformChange.Visible || !res.PlatformChange.CommitUnchanged {
		fmt.Fprintf(d.stdout, "%s\n", line)
		return &usererr.Error{Code: usererr.CodeInternal, What: "see the platform change", Err: fmt.Errorf("the second answer does not show %q", d.mark)}
	}
	_, err = fmt.Fprintf(d.stdout, "%s\n", line)
	return err
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}

// answer is one publication, one pipeline and one request.
type answer struct {
	result
	commit string
	header http.Header
}

func (a answer) shows(mark string) bool {
	return strings.Contains(a.Body, mark) || strings.Contains(a.header.Get(markHeader), mark)
}

func (d demo) cycle(ctx context.Context, log ci.Log, which string, platform *devenv.Platform, r devenv.Release, repo *devenv.Repository) (answer, error) {
	var a answer
	err := log.Do(ctx, "publish", "Publish bundle "+r.Version, func(ctx context.Context) error {
		digest, err := platform.Publish(ctx, r)
		a.Bundle = digest
		log.Printf("%s", digest)
		return err
	})
	if err != nil {
		return answer{}, err
	}
	err = log.Do(ctx, "pipeline", "GitLab pipeline of team/hello ("+which+")", func(ctx context.Context) error {
		out, err := repo.Pipeline(ctx, d.stderr)
		if err != nil {
			return err
		}
		if !out.OK {
			return failed(out)
		}
		a.Pipeline = "ok"
		return a.read(out)
	})
	if err != nil {
		return answer{}, err
	}
	err = log.Do(ctx, "request", "Ask the function", func(ctx context.Context) error { return a.ask(ctx, d.client, log) })
	return a, err
}

// failed says which job ended the pipeline: who can act stands in its own
// error, and its exit code is the demo's.
func failed(out devenv.Outcome) error {
	e := &usererr.Error{Code: usererr.CodeScript, What: "run the demo's pipeline", Next: "read the job's own error above: it says what to do and who can",
		Err: errors.New("GitLab refused it or ran no job of it")}
	for _, j := range out.Jobs {
		if j.Status != gitlabci.Failed {
			continue
		}
		e.Err = fmt.Errorf("job %s ended with code %d", j.Name, j.Code)
		for _, c := range []usererr.Class{usererr.External, usererr.Unable, usererr.Config, usererr.Superseded, usererr.Restored, usererr.Cancelled} {
			if c.Exit() == j.Code {
				e.Class = c
			}
		}
		if j.Code == usererr.Internal.Exit() {
			e.Code = usererr.CodeInternal
		}
		break
	}
	return e
}

// read takes what the jobs reported.
func (a *answer) read(out devenv.Outcome) error {
	build, deploy := out.Reports["build:test"], out.Reports["deploy:test"]
	if len(build.Result.Images) != 1 || len(deploy.Result.URLs) != 1 {
		return fmt.Errorf("the reports name %d images and %d addresses, expected one each", len(build.Result.Images), len(deploy.Result.URLs))
	}
	if deploy.Bundle.Digest != a.Bundle || build.Bundle.Digest != a.Bundle {
		return fmt.Errorf("the jobs ran bundle %s, published was %s", deploy.Bundle.Digest, a.Bundle)
	}
	a.commit = deploy.Commit
	a.Image = build.Result.Images[0].Ref
	a.Release, a.Target, a.Sandbox = deploy.Result.Release, deploy.Result.Target, deploy.Result.Sandbox
	a.URL, a.Function = deploy.Result.URLs[0].URL, deploy.Result.URLs[0].Function
	return nil
}

func (a *answer) ask(ctx context.Context, client *http.Client, log ci.Log) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	a.Status, a.Body, a.header = resp.StatusCode, string(body), resp.Header
	log.Printf("GET %s\n%d %s\n%s: %s", a.URL, a.Status, a.Body, markHeader, resp.Header.Get(markHeader))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the function answered %d", resp.StatusCode)
	}
	return nil
}

// start runs the services in a process of their own, so that --keep can leave
// them behind. stop ends it.
func (d demo) start(ctx context.Context, dir string) (devenv.Services, func(), error) {
	self, err := os.Executable()
	if err != nil {
		return devenv.Services{}, nil, err
	}
	cmd := exec.Command(self, "serve", "--dir", dir, "--sandbox", d.sandbox)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	logFile, err := os.Create(filepath.Join(dir, "services.log"))
	if err != nil {
		return devenv.Services{}, nil, err
	}
	defer logFile.Close()
	cmd.Stderr = logFile
	out, err := cmd.StdoutPipe()
	if err != nil {
		return devenv.Services{}, nil, err
	}
	if err := cmd.Start(); err != nil {
		return devenv.Services{}, nil, err
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	// A child that hangs before it says anything ends with ctx.
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var s devenv.Services
	if err == nil {
		err = json.Unmarshal(line, &s)
	}
	if err != nil {
		stop()
		said, _ := os.ReadFile(filepath.Join(dir, "services.log"))
		return devenv.Services{}, nil, fmt.Errorf("the embedded services did not start: %w\n%s", err, said)
	}
	return s, stop, nil
}

// serve is the child: the services, until SIGTERM. It removes dir at its end.
func serve(ctx context.Context, dir, sandbox string, stdout io.Writer) error {
	s, err := devenv.Start(context.WithoutCancel(ctx), dir, sandbox)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(stdout).Encode(s.Services); err != nil {
		return errors.Join(err, s.Close())
	}
	<-ctx.Done()
	// The folder goes only once nothing is mounted or running in it any more.
	err = s.Close()
	return errors.Join(err, os.RemoveAll(dir))
}
