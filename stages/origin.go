package stages

import (
	"regexp"
	"strings"

	"github.com/kuroko-faas/kuroko/builder/attest"
)

// What provenance names: who builds, and where the parameters are explained.
const (
	builderID = "https://github.com/kuroko-faas/kuroko/stage-runner"
	buildType = "https://github.com/kuroko-faas/kuroko/blob/main/docs/supply-chain.md#build-type-v1"
)

// origin is the provenance of an image: what the repository decided, what the
// platform decided, and the inputs by digest. Of the job's environment it
// holds names and addresses, no variable's value.
func (s *state) origin(plan *BuildPlan, img PlannedImage) *attest.Provenance {
	job := s.Job
	inputs := map[string]any{}
	for _, i := range img.Inputs {
		inputs[i.Name] = i.Sum
	}
	units := make([]any, 0, len(img.Units))
	for _, u := range img.Units {
		units = append(units, u)
	}
	p := &attest.Provenance{
		Builder: builderID, BuildType: buildType, Versions: map[string]string{"stage-runner": s.Version},
		Parameters: map[string]any{"service": plan.Service, "environment": plan.Environment, "image": img.Name, "runtime": img.Runtime, "units": units},
		Internal:   map[string]any{"engine": img.Engine, "key": img.Key, "layout": s.World.Layout, "inputs": inputs},
		Invocation: job.URL, Started: s.World.Now(),
	}
	source := attest.Material{Name: "source"}
	if job.Project.URL != "" {
		source.URI = "git+" + job.Project.URL
		p.Parameters["source"] = job.Project.URL
	}
	switch {
	case job.Commit.Tag != "":
		p.Parameters["ref"] = "refs/tags/" + job.Commit.Tag
	case job.Commit.Branch != "":
		p.Parameters["ref"] = "refs/heads/" + job.Commit.Branch
	}
	switch {
	case sha1Name.MatchString(job.Commit.SHA):
		source.Digest = map[string]string{"gitCommit": job.Commit.SHA}
	case job.Commit.SHA != "":
		// in-toto knows no other name of a commit as a digest; repositories
		// with SHA-256 names have one all the same.
		p.Parameters["commit"] = job.Commit.SHA
	}
	p.Materials = append(p.Materials, source)
	material := func(name, uri, digest string) {
		if alg, sum, ok := strings.Cut(digest, ":"); ok {
			p.Materials = append(p.Materials, attest.Material{Name: name, URI: uri, Digest: map[string]string{alg: sum}})
		}
	}
	material("platform bundle", "", s.Bundle.Digest)
	return p
}

// sha1Name is what in-toto's gitCommit digest may be.
var sha1Name = regexp.MustCompile(`^[0-9a-f]{40}$`)

// ociLabels are the labels of an image that are equal for equal inputs: the
// commit is in its provenance.
func (s *state) ociLabels(img PlannedImage) map[string]string {
	labels := map[string]string{"org.opencontainers.image.title": s.Job.Project.Path + "/" + img.Name}
	if s.Job.Project.URL != "" {
		labels["org.opencontainers.image.source"] = s.Job.Project.URL
	}
	return labels
}
