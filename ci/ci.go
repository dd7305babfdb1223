// Package ci is everything that knows it runs inside GitLab CI: the facts of
// the job, its log sections, and the report files GitLab collects.
//
// Nothing else in the module reads GitLab's environment variables. Libraries
// receive explicit values taken from a [Job]; sandboxed children receive none.
package ci

import "time"

// Job is every fact about the running GitLab job that our code uses, read once
// by [FromEnv]. A Job is a value: nobody changes it after it was read.
type Job struct {
	Server   string // CI_SERVER_URL, for links in messages
	Project  Project
	Pipeline Pipeline
	Commit   Commit
	Registry Registry

	ID   int64  // CI_JOB_ID
	Name string // CI_JOB_NAME
	URL  string // CI_JOB_URL

	// Dir is the work tree (CI_PROJECT_DIR), absolute.
	Dir string

	// Environment is FAAS_ENVIRONMENT, which the template hands to every job.
	// GitLab's own CI_ENVIRONMENT_NAME reaches jobs with `environment:` only.
	Environment string

	// Action is CI_ENVIRONMENT_ACTION: start, prepare, stop, verify, access or
	// empty. Jobs with prepare, verify or access must not move traffic.
	Action string

	// Protected is CI_COMMIT_REF_PROTECTED. It is false in merge request pipelines.
	Protected bool

	// Deadline is when GitLab ends the job (CI_JOB_STARTED_AT and
	// CI_JOB_TIMEOUT); zero when it does not say. GitLab kills without asking,
	// and skips after_script, so we stop before it.
	Deadline time.Time

	// Debug raises verbosity (names, never values).
	Debug bool
}

// Project identifies the repository. ID survives renames, Path does not.
type Project struct {
	ID   int64  // CI_PROJECT_ID, the owner of every object we create
	Path string // CI_PROJECT_PATH
	URL  string // CI_PROJECT_URL
}

// Pipeline identifies the pipeline. IID orders the pipelines of one project;
// ID does not, because it is shared by the whole instance.
type Pipeline struct {
	ID      int64
	IID     int64
	Created time.Time // CI_PIPELINE_CREATED_AT; the instant a bundle is chosen for
	Source  string    // CI_PIPELINE_SOURCE: push, merge_request_event, schedule, …
	URL     string
}

// Commit is what is being built.
type Commit struct {
	SHA    string
	Branch string // empty in tag and merge request pipelines
	Tag    string // empty otherwise
	// MergeRequestIID is zero outside merge request pipelines.
	MergeRequestIID int64
}

// Registry is where images go, and the job's own credentials for it. The
// credentials are revoked when the job ends, so they never reach a cluster.
type Registry struct {
	Host     string // CI_REGISTRY
	Image    string // CI_REGISTRY_IMAGE, the repository prefix of the project
	User     string
	Password string
}
