package devenv

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// Job is a GitLab job's environment, for running a stage without GitLab.
type Job struct {
	Dir         string // the work tree
	Environment string
	ProjectID   int64
	ProjectPath string
	Commit      string
	Branch      string
	IID         int64     // of the pipeline
	Created     time.Time // of the pipeline
	// Platform is the folder with platform.json.
	Platform string
	// Extra variables, "NAME=value"; later ones win.
	Extra []string
}

// Environ is the complete environment of the job. Of this process it has only
// what programs need to be found and to reach a package registry.
func (j Job) Environ() []string {
	env := []string{
		"CI=true", "GITLAB_CI=true", "NO_COLOR=1",
		"CI_PROJECT_DIR=" + j.Dir, "CI_PROJECT_PATH=" + j.ProjectPath, "CI_PROJECT_ID=" + strconv.FormatInt(j.ProjectID, 10),
		"CI_PIPELINE_ID=" + strconv.FormatInt(900000+j.IID, 10), "CI_PIPELINE_IID=" + strconv.FormatInt(j.IID, 10),
		"CI_PIPELINE_CREATED_AT=" + j.Created.UTC().Format(time.RFC3339), "CI_PIPELINE_SOURCE=push",
		"CI_COMMIT_SHA=" + j.Commit, "CI_COMMIT_BRANCH=" + j.Branch, "CI_JOB_ID=" + fmt.Sprint(7000+j.IID),
		"FAAS_ENVIRONMENT=" + j.Environment, "FAAS_PLATFORM_DIR=" + j.Platform,
	}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return append(env, j.Extra...)
}
