package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

// book is the state on disk:
//
//	heads/<scope>.json              Head and its version
//	releases/<scope>/<id>.json      Release, never changed
//	services/<name>.json            a service with its revisions
//	timers/<scope>.<key>.json       a timer
//
// Every file is replaced by one rename, so that a reader after a crash sees
// the old or the new one. Callers serialise writes.
type book struct{ dir string }

type headRecord struct {
	Scope   deployer.Scope `json:"scope"`
	Version int64          `json:"version"`
	Head    deployer.Head  `json:"head"`
}

// serviceRecord is a service. A record in memory is never changed, only
// replaced.
type serviceRecord struct {
	Scope     deployer.Scope            `json:"scope"`
	Name      string                    `json:"name"`
	Unit      string                    `json:"unit"`
	Epoch     int64                     `json:"epoch"`
	Job       bool                      `json:"job,omitempty"` // of a job, whose revisions have no processes
	Template  string                    `json:"template"`
	Traffic   []deployer.Share          `json:"traffic"`
	Revisions map[string]revisionRecord `json:"revisions"`
}

type revisionRecord struct {
	Spec    deployer.Spec `json:"spec"`
	Created time.Time     `json:"created"`
	// WasReady: from then on an end of the process is an incident that is
	// restarted, no longer a failed start.
	WasReady bool              `json:"wasReady,omitempty"`
	Failure  *deployer.Failure `json:"failure,omitempty"`
}

func (r serviceRecord) clone() serviceRecord {
	r.Traffic = slices.Clone(r.Traffic)
	revisions := make(map[string]revisionRecord, len(r.Revisions))
	for k, v := range r.Revisions {
		revisions[k] = v
	}
	r.Revisions = revisions
	return r
}

// scopeKey is a scope as one file name.
func scopeKey(s deployer.Scope) string {
	return fileName(s.Namespace + "/" + s.Service + "/" + s.Environment)
}

// fileName makes any string a file name of its own that is no . or .. .
func fileName(s string) string { return "s-" + url.PathEscape(s) }

func (b book) headFile(s deployer.Scope) string {
	return filepath.Join(b.dir, "heads", scopeKey(s)+".json")
}

func (b book) releaseFile(s deployer.Scope, id string) string {
	return filepath.Join(b.dir, "releases", scopeKey(s), fileName(id)+".json")
}

func (b book) serviceFile(name string) string {
	return filepath.Join(b.dir, "services", fileName(name)+".json")
}

func (b book) head(s deployer.Scope) (headRecord, error) {
	var rec headRecord
	err := readJSON(b.headFile(s), &rec)
	if errors.Is(err, fs.ErrNotExist) {
		return headRecord{}, nil
	}
	if err == nil && rec.Scope.Owner != s.Owner {
		return rec, &deployer.ForeignError{Object: "the record of " + s.String(), Owner: rec.Scope.Owner, Mine: s.Owner}
	}
	return rec, err
}

func (b book) release(s deployer.Scope, id string) (deployer.Release, error) {
	var r deployer.Release
	err := readJSON(b.releaseFile(s, id), &r)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("release %s of %s: %w", id, s, deployer.ErrNotFound)
	}
	return r, err
}

func (b book) releases(s deployer.Scope) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(b.dir, "releases", scopeKey(s)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		if id, err := url.PathUnescape(strings.TrimPrefix(name, "s-")); err == nil {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// services reads every service there is. A file that can't be read is an
// error: going on without it would serve less than was promised.
func (b book) services() ([]serviceRecord, error) {
	entries, err := os.ReadDir(filepath.Join(b.dir, "services"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []serviceRecord
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tmpPrefix) || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var rec serviceRecord
		if err := readJSON(filepath.Join(b.dir, "services", e.Name()), &rec); err != nil {
			return nil, err
		}
		all = append(all, rec)
	}
	return all, nil
}

// removeFile forgets a record; a missing one is no error.
func removeFile(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// writeJSON replaces the file by one rename, after its bytes reached the disk.
func writeJSON(name string, v any) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, tmpPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeFile(f.Name()))
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
