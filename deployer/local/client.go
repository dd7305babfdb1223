package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/kuroko-faas/kuroko/deployer"
)

var _ deployer.Target = (*Target)(nil)

// Target is the client of a [Server]. It is safe for concurrent use and
// needs no closing.
type Target struct {
	socket string
	http   *http.Client
	units  *http.Client

	mu  sync.Mutex
	url string
}

// callTime bounds one call on the socket; waiting has calls of its own.
const callTime = 30 * time.Second

// Dial returns the target behind a control socket. Nothing is sent yet: a
// missing server shows at the first call, as [deployer.ErrUnavailable].
func Dial(socket string) *Target {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		name, done, err := shortName(socket)
		if err != nil {
			return nil, err
		}
		defer done()
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", name)
	}
	return &Target{
		socket: socket,
		http:   &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 8, IdleConnTimeout: 5 * time.Second}},
		// Loopback is never behind a proxy.
		units: &http.Client{
			Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
			Timeout:       10 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (t *Target) call(ctx context.Context, verb string, in request) (reply, error) {
	if err := ctx.Err(); err != nil {
		return reply{}, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return reply{}, fmt.Errorf("local target: %s: %w", verb, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://local/v1/"+verb, bytes.NewReader(body))
	if err != nil {
		return reply{}, fmt.Errorf("local target: %s: %w", verb, err)
	}
	res, err := t.http.Do(req)
	if err != nil {
		return reply{}, t.unavailable(ctx, verb, err)
	}
	defer res.Body.Close()
	var out reply
	if err := json.NewDecoder(io.LimitReader(res.Body, maxControl)).Decode(&out); err != nil {
		if res.StatusCode != http.StatusOK {
			return reply{}, fmt.Errorf("local target: %s: the server answered %s; is it of this version?", verb, res.Status)
		}
		return reply{}, t.unavailable(ctx, verb, err)
	}
	if out.Error != nil {
		return reply{}, out.Error.err()
	}
	return out, nil
}

// unavailable says why the server could not be asked.
func (t *Target) unavailable(ctx context.Context, verb string, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Cause(ctx)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("local target: %s: no server: %s is missing; start one with faasctl local serve: %w", verb, t.socket, deployer.ErrUnavailable)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("local target: %s: nobody listens at %s; start the server again with faasctl local serve: %w", verb, t.socket, deployer.ErrUnavailable)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("local target: %s: %s belongs to another user: %w", verb, t.socket, err)
	}
	return fmt.Errorf("local target: %s: %w: %w", verb, deployer.ErrUnavailable, err)
}

// URL is where units are reached.
func (t *Target) URL(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.url == "" {
		out, err := t.call(ctx, "info", request{})
		if err != nil {
			return "", err
		}
		t.url = out.URL
	}
	return t.url, nil
}

// Sandbox is how the server runs units: root, userns or none, and why not
// better.
func (t *Target) Sandbox(ctx context.Context) (mode, why string, err error) {
	out, err := t.call(ctx, "info", request{})
	return out.Sandbox, out.Why, err
}

// Head implements deployer.Records.
func (t *Target) Head(ctx context.Context, s deployer.Scope) (deployer.Head, error) {
	out, err := t.call(ctx, "head", request{Scope: s})
	out.Head.Version = out.Version
	return out.Head, err
}

// SwapHead implements deployer.Records.
func (t *Target) SwapHead(ctx context.Context, s deployer.Scope, h deployer.Head) (deployer.Head, error) {
	out, err := t.call(ctx, "swap-head", request{Scope: s, Head: h, Version: h.Version})
	out.Head.Version = out.Version
	return out.Head, err
}

// CreateRelease implements deployer.Records.
func (t *Target) CreateRelease(ctx context.Context, f deployer.Fence, r deployer.Release) error {
	_, err := t.call(ctx, "create-release", request{Fence: f, Release: &r})
	return err
}

// Release implements deployer.Records.
func (t *Target) Release(ctx context.Context, s deployer.Scope, id string) (deployer.Release, error) {
	out, err := t.call(ctx, "release", request{Scope: s, ID: id})
	if err != nil || out.Release == nil {
		return deployer.Release{}, err
	}
	return *out.Release, nil
}

// Releases implements deployer.Records.
func (t *Target) Releases(ctx context.Context, s deployer.Scope) ([]string, error) {
	out, err := t.call(ctx, "releases", request{Scope: s})
	return out.IDs, err
}

// RemoveRelease implements deployer.Records.
func (t *Target) RemoveRelease(ctx context.Context, f deployer.Fence, id string) error {
	_, err := t.call(ctx, "remove-release", request{Fence: f, ID: id})
	return err
}

// Preflight implements deployer.Units.
func (t *Target) Preflight(ctx context.Context, s deployer.Scope, units []deployer.Spec) error {
	asked := make([]checkedUnit, 0, len(units))
	for _, u := range units {
		asked = append(asked, checkedUnit{
			Name: u.Name, Unit: u.Unit, Image: u.Image.String(), Secrets: len(u.Secrets) > 0, Config: len(u.Config) > 0, Internal: u.Internal,
		})
	}
	_, err := t.call(ctx, "check", request{Scope: s, Check: asked})
	return err
}

// Versions implements deployer.Units: there are no Secrets and ConfigMaps
// here, and Preflight refuses units that want some.
func (t *Target) Versions(ctx context.Context, _ deployer.Scope, _ []deployer.Source) (map[deployer.Source]string, error) {
	return nil, ctx.Err()
}

// Services implements deployer.Units.
func (t *Target) Services(ctx context.Context, s deployer.Scope) ([]deployer.Service, error) {
	out, err := t.call(ctx, "services", request{Scope: s})
	return out.Services, err
}

// Ensure implements deployer.Units.
func (t *Target) Ensure(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	_, err := t.call(ctx, "ensure", request{Fence: f, Units: []deployer.Spec{s}, Revision: revision})
	return err
}

// WaitReady implements deployer.Units.
func (t *Target) WaitReady(ctx context.Context, s deployer.Scope, service, revision string, progress func(string)) (deployer.Revision, error) {
	known := ""
	for {
		out, err := t.call(ctx, "wait", request{Scope: s, Service: service, Revision: revision, Known: known})
		if err != nil {
			return deployer.Revision{}, err
		}
		if out.Revision != nil {
			return *out.Revision, nil
		}
		if out.Why != known && progress != nil {
			progress(out.Why)
		}
		known = out.Why
	}
}

// Probe implements deployer.Units: through the server's own address, as any
// caller would.
func (t *Target) Probe(ctx context.Context, s deployer.Scope, service, revision, nonce string) (deployer.Answer, error) {
	url, err := t.URL(ctx)
	if err != nil {
		return deployer.Answer{}, err
	}
	name := revision
	if name == "" {
		name = service
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/"+name+"/", nil)
	if err != nil {
		return deployer.Answer{}, fmt.Errorf("local target: probe %s: %w", name, err)
	}
	req.Header.Set(deployer.HeaderNonce, nonce)
	res, err := t.units.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return deployer.Answer{}, context.Cause(ctx)
		}
		return deployer.Answer{}, fmt.Errorf("local target: probe %s: %w", name, err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	return deployer.Answer{
		Status: res.StatusCode, Nonce: res.Header.Get(deployer.HeaderNonce), Revision: res.Header.Get(deployer.HeaderRevision),
		Image: res.Header.Get(deployer.HeaderImage), Key: res.Header.Get(deployer.HeaderKey),
	}, nil
}

// SetTraffic implements deployer.Units.
func (t *Target) SetTraffic(ctx context.Context, f deployer.Fence, service string, shares []deployer.Share) error {
	_, err := t.call(ctx, "set-traffic", request{Fence: f, Service: service, Shares: shares})
	return err
}

// RestoreTemplate implements deployer.Units.
func (t *Target) RestoreTemplate(ctx context.Context, f deployer.Fence, s deployer.Spec, revision string) error {
	_, err := t.call(ctx, "restore", request{Fence: f, Units: []deployer.Spec{s}, Revision: revision})
	return err
}

// RemoveRevision implements deployer.Units.
func (t *Target) RemoveRevision(ctx context.Context, f deployer.Fence, service, revision string) error {
	_, err := t.call(ctx, "remove-revision", request{Fence: f, Service: service, Revision: revision})
	return err
}

// RemoveService implements deployer.Units.
func (t *Target) RemoveService(ctx context.Context, f deployer.Fence, service string) error {
	_, err := t.call(ctx, "remove-service", request{Fence: f, Service: service})
	return err
}

// Logs implements deployer.Units.
func (t *Target) Logs(ctx context.Context, s deployer.Scope, service, revision string, n int) ([]string, error) {
	out, err := t.call(ctx, "logs", request{Scope: s, Service: service, Revision: revision, N: n})
	return out.Lines, err
}
