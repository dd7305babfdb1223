package local

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/deployer/analysis"
)

// Instances implements deployer.Loads: 1 for a revision that can answer, which
// one that was stopped can, too.
func (t *Target) Instances(ctx context.Context, s deployer.Scope, service, revision string) (int, error) {
	all, err := t.Services(ctx, s)
	if err != nil {
		return 0, err
	}
	for _, svc := range all {
		if r, ok := svc.Revision(revision); ok && svc.Name == service {
			if r.Phase != deployer.Ready {
				return 0, nil
			}
			return 1, nil
		}
	}
	return 0, fmt.Errorf("local target: revision %s: %w", revision, deployer.ErrNotFound)
}

// SetFloor implements deployer.Loads: there is one instance of each revision.
func (t *Target) SetFloor(ctx context.Context, _ deployer.Fence, _, _ string, _ int) error {
	return ctx.Err()
}

// Ask implements deployer.Loads.
func (t *Target) Ask(ctx context.Context, _ deployer.Scope, _, revision string, q deployer.Request) (deployer.Reply, error) {
	url, err := t.URL(ctx)
	if err != nil {
		return deployer.Reply{}, err
	}
	if q.Limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, q.Limit)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, q.Method, url+"/"+revision+"/"+strings.TrimPrefix(q.Path, "/"), nil)
	if err != nil {
		return deployer.Reply{}, fmt.Errorf("local target: ask %s: %w", revision, err)
	}
	start := time.Now()
	res, err := t.units.Do(req)
	if err != nil {
		return deployer.Reply{}, fmt.Errorf("local target: ask %s: %w", revision, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, deployer.MaxReplyBody))
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 16<<20))
	}
	if err != nil {
		return deployer.Reply{}, fmt.Errorf("local target: ask %s: %w", revision, err)
	}
	return deployer.Reply{Status: res.StatusCode, Took: time.Since(start), Body: string(body)}, nil
}

// Measure implements deployer.Loads: the server counts what it passes on.
func (t *Target) Measure(ctx context.Context, s deployer.Scope, service, revision string) ([]analysis.Counts, error) {
	out, err := t.call(ctx, "measure", request{Scope: s, Service: service, Revision: revision})
	return out.Counts, err
}

func (s *Server) doMeasure(_ context.Context, in request) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc, err := s.find(in.Scope, in.Service)
	if err != nil {
		return reply{}, err
	}
	if svc == nil || svc.instances[in.Revision] == nil {
		return reply{}, fmt.Errorf("revision %s: %w", in.Revision, deployer.ErrNotFound)
	}
	return reply{Counts: []analysis.Counts{svc.instances[in.Revision].counted()}}, nil
}

// count counts one request that the instance was given. Questions about who
// answers are not the function's.
func (i *instance) count(r *http.Request, status int, took time.Duration) {
	if r.Header.Get(deployer.HeaderNonce) != "" {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.counts.Add(status, took)
}

func (i *instance) counted() analysis.Counts {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := i.counts
	c.Instance, c.Buckets = i.name, append([]analysis.Bucket(nil), c.Buckets...)
	return c
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController flush and hijack.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
