package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

func keychain(host, user, password string) authn.Keychain {
	return fixed{host, authn.AuthConfig{Username: user, Password: password}}
}

type fixed struct {
	host string
	cfg  authn.AuthConfig
}

func (f fixed) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if r.RegistryStr() != f.host {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(f.cfg), nil
}

func TestBasic(t *testing.T) {
	srv := registrytest.New(t)
	srv.Auth(registrytest.Basic("robot", "s3cret"))
	repo := repoOf(t, srv, "team/app")
	s := quick(Options{Keychain: keychain(srv.Host, "robot", "s3cret")})
	for _, c := range []string{"a", "b"} {
		if _, err := s.Push(t.Context(), repo, blobOf(c), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Requests(); got != 5 {
		t.Errorf("two blobs took %d requests, want 4 and one challenge", got)
	}
	for title, k := range map[string]authn.Keychain{"wrong": keychain(srv.Host, "robot", "no"), "none": nil} {
		s := quick(Options{Keychain: k})
		_, err := s.Push(t.Context(), repo, blobOf("c"), nil)
		if !errors.Is(err, ErrDenied) || s.Requests() > 2 {
			t.Errorf("%s: %d requests, %v", title, s.Requests(), err)
		}
		if strings.Contains(fmt.Sprint(err), "no\"") || strings.Contains(fmt.Sprint(err), "s3cret") {
			t.Errorf("%s: the message holds the password: %v", title, err)
		}
	}
}

// tokens is a token service, and the guard that checks its tokens.
type tokens struct {
	*httptest.Server
	mu     sync.Mutex
	valid  map[string]bool
	issued []string // scopes
	life   int
	form   bool
}

func newTokens(t *testing.T, srv *registrytest.Server) *tokens {
	ts := &tokens{valid: map[string]bool{}}
	ts.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		if ts.form {
			if r.PostForm.Get("refresh_token") == "identity" {
				user, pass = "robot", "s3cret"
			}
		}
		if user != "robot" || pass != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Form.Get("service") != "test-registry" {
			t.Errorf("service is %q", r.Form.Get("service"))
		}
		ts.mu.Lock()
		defer ts.mu.Unlock()
		ts.issued = append(ts.issued, strings.Join(r.Form["scope"], " "))
		tok := fmt.Sprintf("t%d", len(ts.issued))
		ts.valid[tok] = true
		if ts.form {
			fmt.Fprintf(w, `{"access_token":%q}`, tok)
			return
		}
		fmt.Fprintf(w, `{"token":%q,"expires_in":%d}`, tok, ts.life)
	}))
	t.Cleanup(ts.Close)
	srv.Auth(func(w http.ResponseWriter, r *http.Request) bool {
		tok := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if ts.valid[tok] {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/jwt/auth",service="test-registry",scope="repository:x:pull"`, ts.URL))
		registrytest.Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return true
	})
	return ts
}

func (ts *tokens) revoke() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.valid = map[string]bool{}
}

func TestTokens(t *testing.T) {
	srv := registrytest.New(t)
	ts := newTokens(t, srv)
	ts.life = 300
	now := time.Unix(1e9, 0)
	repo := repoOf(t, srv, "team/app")
	c := New(Options{Keychain: keychain(srv.Host, "robot", "s3cret"), Delay: time.Microsecond, Now: func() time.Time { return now }})
	s := c.Session()
	push := func(content string) {
		t.Helper()
		if _, err := s.Push(t.Context(), repo, blobOf(content), nil); err != nil {
			t.Fatal(err)
		}
	}
	push("a")
	push("b")
	// POST 401, token, POST, PUT; POST, PUT.
	if got := s.Requests(); got != 6 {
		t.Errorf("two blobs took %d requests, want 6", got)
	}
	if want := "repository:team/app:pull,push"; len(ts.issued) != 1 || ts.issued[0] != want {
		t.Errorf("asked for %v, want one token for %s", ts.issued, want)
	}
	// Another session of the client keeps the token; after its life a new one
	// is fetched without a 401 first.
	s = c.Session()
	now = now.Add(200 * time.Second)
	push("c")
	now = now.Add(200 * time.Second)
	push("d")
	if got := s.Requests(); got != 5 || len(ts.issued) != 2 {
		t.Errorf("%d requests, %d tokens; want 5, 2", got, len(ts.issued))
	}
	// Revoked in the middle of an upload: one refresh, and the blob goes on.
	s = c.Session()
	srv.Fault(first(1, method("POST"), func(w http.ResponseWriter, r *http.Request) {
		srv.Fault(nil)
		srv.ServeHTTP(w, r)
		ts.revoke()
	}))
	push("e")
	if len(ts.issued) != 3 {
		t.Errorf("%d tokens, want 3", len(ts.issued))
	}
	// A registry that accepts no token at all is asked twice, not for ever.
	srv.Auth(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="test-registry"`, ts.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	s = c.Session()
	if _, err := s.Push(t.Context(), repo, blobOf("f"), nil); !errors.Is(err, ErrDenied) || s.Requests() != 3 {
		t.Errorf("%d requests, %v", s.Requests(), err)
	}
}

func TestOneTokenForManyAtOnce(t *testing.T) {
	srv := registrytest.New(t)
	ts := newTokens(t, srv)
	ts.life = 300
	repo := repoOf(t, srv, "team/app")
	s := quick(Options{Keychain: keychain(srv.Host, "robot", "s3cret")})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if _, err := s.Push(context.Background(), repo, blobOf(fmt.Sprint(i)), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(ts.issued) != 1 {
		t.Errorf("%d tokens were fetched, want 1", len(ts.issued))
	}
}

func TestIdentityTokenGoesIntoAForm(t *testing.T) {
	srv := registrytest.New(t)
	ts := newTokens(t, srv)
	ts.form = true
	s := quick(Options{Keychain: fixed{srv.Host, authn.AuthConfig{IdentityToken: "identity"}}})
	if _, err := s.Push(t.Context(), repoOf(t, srv, "team/app"), blobOf("a"), nil); err != nil {
		t.Error(err)
	}
}

func TestCredentialsStayWithTheRegistry(t *testing.T) {
	var mu sync.Mutex
	var leaked []string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if h := r.Header.Get("Authorization"); h != "" {
			leaked = append(leaked, h)
		}
		io.Copy(io.Discard, r.Body)
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusCreated)
		}
	}))
	t.Cleanup(other.Close)
	// Another name, not only another port: the client's own rule for
	// redirects looks at names.
	elsewhere := strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	srv := registrytest.New(t)
	srv.Auth(registrytest.Basic("robot", "s3cret"))
	srv.Fault(func(w http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPost:
			w.Header().Set("Location", elsewhere+"/upload?state=1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodGet:
			http.Redirect(w, r, elsewhere+"/blob", http.StatusTemporaryRedirect)
		}
		return true
	})
	repo := repoOf(t, srv, "team/app")
	s := quick(Options{Keychain: keychain(srv.Host, "robot", "s3cret")})
	if _, err := s.Push(t.Context(), repo, blobOf("a"), nil); err != nil {
		t.Error(err)
	}
	if r, err := s.Blob(t.Context(), repo, blobOf("").Digest, 0); err != nil {
		t.Error(err)
	} else {
		r.Close()
	}
	if len(leaked) > 0 {
		t.Errorf("credentials went to another host: %v", leaked)
	}
	// A realm without TLS must not see the credentials of a registry with it.
	secure, err := name.NewRepository("registry.example.test/team/app")
	if err != nil {
		t.Fatal(err)
	}
	s = quick(Options{Keychain: keychain("registry.example.test", "robot", "s3cret"), Transport: answer(func(r *http.Request) *http.Response {
		if r.URL.Scheme != "https" {
			t.Errorf("asked %s", r.URL)
		}
		return &http.Response{StatusCode: 401, Body: http.NoBody, Request: r,
			Header: http.Header{"Www-Authenticate": {`Bearer realm="http://registry.example.test/token"`}}}
	})})
	if _, err := s.Push(t.Context(), secure, blobOf("a"), nil); !errors.Is(err, errInsecureRealm) || s.Requests() != 1 {
		t.Errorf("%d requests, %v", s.Requests(), err)
	}
}

type answer func(*http.Request) *http.Response

func (a answer) RoundTrip(r *http.Request) (*http.Response, error) { return a(r), nil }
