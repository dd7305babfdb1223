package knative

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/kuroko-faas/kuroko/deployer"
)

// Labels and annotations on every object. The labels of a unit's template are
// its pods' too.
const (
	group = "kuroko.dev/"

	LabelOwner       = group + "owner" // CI_PROJECT_ID
	LabelService     = group + "service"
	LabelEnvironment = group + "environment"
	LabelUnit        = group + "unit"
	// LabelRecord marks release records.
	LabelRecord = group + "record"
	// LabelRevision is on what calls or runs a revision, and on its pods.
	LabelRevision = group + "revision"
	// LabelJob is the name of the job unit, on its revisions; LabelTimer is
	// [deployer.Timer.Key].
	LabelJob   = group + "job"
	LabelTimer = group + "timer"
	// LabelRun marks runs that were started by hand.
	LabelRun = group + "run"

	// AnnotationEpoch is the lease epoch of the last write, on the Service.
	AnnotationEpoch = group + "epoch"
	// AnnotationHash is [deployer.Spec.Hash], on the template.
	AnnotationHash = group + "hash"
	// AnnotationNetwork, on the template, is "internal" for a revision that
	// must not be reached from outside the cluster.
	AnnotationNetwork = group + "network"
	// AnnotationVersion and a source's name are the version that a Secret or
	// ConfigMap had, on the template.
	AnnotationVersion = "version." + group
	// AnnotationKeys is who set which key when, as JSON, on a Secret.
	AnnotationKeys = group + "keys"
	// What a timer calls, [deployer.Timer.Does] and, as we wrote it, when.
	AnnotationFunction = group + "function"
	AnnotationService  = group + "calls"
	AnnotationRevision = group + "revision"
	AnnotationDoes     = group + "does"
	AnnotationSchedule = group + "schedule"
	// AnnotationHead is the record on the Lease; AnnotationLive repeats its
	// release for people.
	AnnotationHead = group + "head"
	AnnotationLive = group + "live"
	// AnnotationWrite differs with every write of the Lease, so that a
	// renewal shows from outside.
	AnnotationWrite = group + "write"
)

// internal is the value of [AnnotationNetwork].
const internal = "internal"

// TagNext is the tag of a revision that is being proven at 0 %.
const TagNext = "next"

var unsafe = regexp.MustCompile(`[^a-z0-9-]+`)

// label makes a label's value, or a part of a name, of s: s itself where that
// is possible, else what is left of it and a hash.
func label(s string) string {
	clean := strings.Trim(unsafe.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if clean == s && len(s) <= 63 && s != "" {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return strings.TrimLeft(clean[:min(len(clean), 50)]+"-"+hex.EncodeToString(sum[:4]), "-")
}

// recordName is the name of the scope's Lease, and what its releases' names
// start with.
func recordName(s deployer.Scope) string { return label(s.Service) + "." + label(s.Environment) }

func releaseName(s deployer.Scope, id string) string { return recordName(s) + "." + label(id) }

// scopeLabels are on every object of the scope.
func scopeLabels(s deployer.Scope) map[string]string {
	return map[string]string{
		LabelOwner: label(s.Owner), LabelService: label(s.Service), LabelEnvironment: label(s.Environment),
	}
}

func selector(m map[string]string) string { return labels.SelectorFromSet(m).String() }

// ofRevision selects what Knative made for a revision.
func ofRevision(name string) string {
	return selector(map[string]string{serving.RevisionLabelKey: name})
}

// owned checks that the object carries the scope's owner.
func owned(s deployer.Scope, kind, name string, have map[string]string) error {
	if owner := have[LabelOwner]; owner != label(s.Owner) {
		return &deployer.ForeignError{Object: kind + " " + name, Owner: owner, Mine: s.Owner}
	}
	return nil
}

// ours checks that a Service is the scope's: another environment of the same
// project is foreign too.
func ours(s deployer.Scope, kind, name string, have map[string]string) error {
	if err := owned(s, kind, name, have); err != nil {
		return err
	}
	for k, v := range scopeLabels(s) {
		if have[k] != v {
			return &deployer.ForeignError{
				Object: kind + " " + name + " (" + have[LabelService] + " in " + have[LabelEnvironment] + ")",
				Owner:  have[LabelOwner], Mine: s.Owner,
			}
		}
	}
	return nil
}

func splitList(s string) []string {
	var all []string
	for _, f := range filepath.SplitList(s) {
		if f != "" {
			all = append(all, f)
		}
	}
	return all
}
