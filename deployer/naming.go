package deployer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Limits of names. A revision's pods carry its name plus a suffix of the
// cluster's own, all within 63 characters.
const (
	MaxServiceName  = 40
	MaxRevisionName = 51
	// maxAttempt is the highest -<n> a revision name may carry, so that names
	// stay within MaxRevisionName.
	maxAttempt = 9
)

var dns1035 = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)

// Hash is the content of s: everything that decides how the unit behaves,
// as 64 hex characters. The image's input key is left out, see [Spec.Key].
func (s Spec) Hash() string {
	s.Key = ""
	b, err := s.MarshalJSON() // maps are written sorted by key
	if err != nil {
		// Strings, numbers and a string map can't fail to encode.
		b = fmt.Appendf(nil, "%#v", s)
	}
	sum := sha256.Sum256(append([]byte("kuroko spec 1\n"), b...))
	return hex.EncodeToString(sum[:])
}

// RevisionName is the name of the attempt-th revision of this content,
// counted from 1: <name>-<8 hex>, then <name>-<8 hex>-2 and so on. A later
// attempt exists only where the earlier one failed.
func (s Spec) RevisionName(attempt int) string { return s.revisionName(s.Hash(), attempt) }

func (s Spec) revisionName(hash string, attempt int) string {
	n := s.Name + "-" + hash[:8]
	if attempt > 1 {
		n += "-" + strconv.Itoa(attempt)
	}
	return n
}

// Validate reports every problem of s at once, for a caller that built it
// wrongly; what a developer can get wrong is checked where he wrote it.
func (s Spec) Validate() error {
	var bad []string
	if len(s.Name) > MaxServiceName || !dns1035.MatchString(s.Name) {
		bad = append(bad, fmt.Sprintf("name %q: want at most %d of a-z, 0-9 and -, starting with a letter", s.Name, MaxServiceName))
	}
	if s.Unit == "" {
		bad = append(bad, "no unit name")
	}
	if ref(s.Image) == "" {
		bad = append(bad, "no image")
	}
	if s.Timeout < 0 || s.InitTimeout < 0 || s.IdleTimeout < 0 || s.Concurrency < 0 || s.MinScale < 0 || s.MaxScale < 0 || s.ScaleTarget < 0 {
		bad = append(bad, "a negative limit")
	}
	for _, refs := range []map[string]Ref{s.Secrets, s.Config} {
		for _, n := range slices.Sorted(maps.Keys(refs)) {
			if r := refs[n]; n == "" || r.Name == "" || r.Key == "" {
				bad = append(bad, fmt.Sprintf("%q reads key %q of %q: a name is missing", n, r.Key, r.Name))
			}
		}
	}
	if j := s.Job; j != nil && (j.Parallelism < 1 || j.Completions < 1 || j.Retries < 0 || j.Timeout < 0 || j.TTL < 0) {
		bad = append(bad, fmt.Sprintf("job %+v", *j))
	}
	if len(bad) > 0 {
		return fmt.Errorf("deployer: unit %s: %s", s.Unit, strings.Join(bad, "; "))
	}
	return nil
}
