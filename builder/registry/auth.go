package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

var (
	errInsecureRealm = errors.New("the registry wants credentials sent to an address without TLS")
	errNoCredentials = errors.New("no credentials are configured for it")
)

// host is what is known about one registry's wish for credentials: nothing
// until its first 401, which is the challenge that other clients ping for.
type host struct {
	registry name.Registry
	root     func() (*url.URL, error) // its address, made once
	mu       sync.Mutex               // held while a token is fetched, so that one is fetched
	known    *challenge
	tokens   map[string]token // by scopes
}

type token struct {
	header  string
	expires time.Time // zero: never
}

func (c *Client) host(r name.Registry) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.hosts[r]
	if h == nil {
		root := func() (*url.URL, error) { return url.Parse(base(r) + "/") }
		h = &host{registry: r, root: sync.OnceValues(root), tokens: map[string]token{}}
		c.hosts[r] = h
	}
	return h
}

// authorize gives the header for a first try: empty until the registry has
// asked for one, later a token that is still good.
func (h *host) authorize(ctx context.Context, s *Session, scopes []string) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		return "", nil
	}
	return h.token(ctx, s, scopes, "")
}

// answer gives the header for the second try after a 401. sent is what the
// first one carried: a token that did not help is not used again.
func (h *host) answer(ctx context.Context, s *Session, challenges, scopes []string, sent string) (string, error) {
	c := choose(challenges)
	if c == nil {
		return "", &Error{Host: h.registry.RegistryStr(), Status: http.StatusUnauthorized,
			Message: "the answer names no way to log in that we know"}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = c
	header, err := h.token(ctx, s, scopes, sent)
	if err == nil && header == sent {
		return "", &Error{Host: h.registry.RegistryStr(), Status: http.StatusUnauthorized, Message: "the credentials are refused"}
	}
	return header, err
}

// token finds or fetches the header for scopes; never the one called refused.
func (h *host) token(ctx context.Context, s *Session, scopes []string, refused string) (string, error) {
	scopes = append([]string{}, scopes...)
	if h.known.scope != "" && len(scopes) == 0 {
		scopes = append(scopes, h.known.scope)
	}
	slices.Sort(scopes)
	key := h.known.scheme + " " + strings.Join(scopes, " ")
	if t, ok := h.tokens[key]; ok && t.header != refused && (t.expires.IsZero() || s.c.o.Now().Before(t.expires)) {
		return t.header, nil
	}
	auth, err := s.c.o.Keychain.Resolve(h.registry)
	if err != nil {
		return "", fmt.Errorf("find credentials: %w", err)
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return "", fmt.Errorf("find credentials: %w", err)
	}
	t, err := h.fetch(ctx, s, scopes, cfg)
	if err != nil {
		return "", err
	}
	h.tokens[key] = t
	return t.header, nil
}

func (h *host) fetch(ctx context.Context, s *Session, scopes []string, cfg *authn.AuthConfig) (token, error) {
	switch {
	case cfg.RegistryToken != "":
		return token{header: "Bearer " + cfg.RegistryToken}, nil
	case h.known.scheme == "basic":
		b := basic(cfg)
		if b == "" {
			return token{}, &Error{Host: h.registry.RegistryStr(), Status: http.StatusUnauthorized, Err: errNoCredentials}
		}
		return token{header: b}, nil
	}
	realm, err := url.Parse(h.known.realm)
	if err != nil || realm.Host == "" || realm.Scheme != "http" && realm.Scheme != "https" {
		return token{}, &Error{Host: h.registry.RegistryStr(), Status: http.StatusUnauthorized,
			Message: "the answer names a token address that can't be used"}
	}
	secret := basic(cfg) != "" || cfg.IdentityToken != ""
	if secret && realm.Scheme == "http" && h.registry.Scheme() == "https" {
		return token{}, errInsecureRealm
	}
	var t token
	err = s.retry(ctx, func() (err error) {
		t, err = h.exchange(ctx, s, realm, scopes, cfg)
		return err
	})
	return t, err
}

// exchange asks the token service once.
func (h *host) exchange(ctx context.Context, s *Session, realm *url.URL, scopes []string, cfg *authn.AuthConfig) (token, error) {
	q := realm.Query()
	if h.known.service != "" {
		q.Set("service", h.known.service)
	}
	u := *realm
	c := call{op: "get a token", method: http.MethodGet, registry: h.registry, header: http.Header{}}
	auth := basic(cfg)
	if cfg.IdentityToken != "" {
		// OAuth2: a refresh token in a form, never in an address.
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", cfg.IdentityToken)
		q.Set("client_id", "kuroko")
		q.Set("scope", strings.Join(scopes, " "))
		form := q.Encode()
		c.method, c.size = http.MethodPost, int64(len(form))
		c.header.Set("Content-Type", "application/x-www-form-urlencoded")
		c.body = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil }
		u.RawQuery, auth = "", ""
	} else {
		for _, sc := range scopes {
			q.Add("scope", sc)
		}
		u.RawQuery = q.Encode()
	}
	resp, err := s.send(ctx, c, &u, auth)
	if err != nil {
		return token{}, err
	}
	defer drain(resp)
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return token{}, s.sendError(ctx, ctx, c, err)
	}
	if resp.StatusCode != http.StatusOK {
		e := s.fail(c, resp.StatusCode, nil)
		e.Host = realm.Host
		e.explain(resp.Header.Get("Content-Type"), body)
		e.Wait = retryAfter(resp.Header.Get("Retry-After"), s.c.o.Now())
		return token{}, e
	}
	var answer struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Token == "" && answer.AccessToken == "" {
		e := s.fail(c, resp.StatusCode, errors.New("the answer holds no token"))
		e.Host = realm.Host
		return token{}, e
	}
	if answer.Token == "" {
		answer.Token = answer.AccessToken
	}
	life := time.Duration(answer.ExpiresIn) * time.Second
	if life <= 0 {
		life = time.Minute // the token specification's default
	}
	// A tenth is taken off, for requests under way.
	return token{header: "Bearer " + answer.Token, expires: s.c.o.Now().Add(life - life/10)}, nil
}

func basic(cfg *authn.AuthConfig) string {
	if cfg.Auth != "" {
		return "Basic " + cfg.Auth
	}
	if cfg.Username == "" && cfg.Password == "" {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
}

// challenge is one entry of a WWW-Authenticate header.
type challenge struct {
	scheme                string // basic or bearer
	realm, service, scope string
}

// choose picks the challenge we can answer best: Bearer before Basic.
func choose(headers []string) *challenge {
	var best *challenge
	for _, h := range headers {
		for _, c := range parseChallenges(h) {
			switch {
			case c.scheme == "bearer" && c.realm != "":
				return &c
			case c.scheme == "basic" && best == nil:
				best = &c
			}
		}
	}
	return best
}

// parseChallenges reads a WWW-Authenticate header, which may hold several
// challenges in one line: scheme, then name="value" pairs between commas.
func parseChallenges(s string) []challenge {
	var out []challenge
	for s = skip(s); s != ""; s = skip(s) {
		word, rest := cutToken(s)
		if word == "" {
			return out
		}
		if v, after, ok := cutValue(rest); ok {
			if len(out) == 0 {
				return nil
			}
			c := &out[len(out)-1]
			switch strings.ToLower(word) {
			case "realm":
				c.realm = v
			case "service":
				c.service = v
			case "scope":
				c.scope = v
			}
			s = after
			continue
		}
		out = append(out, challenge{scheme: strings.ToLower(word)})
		s = rest
	}
	return out
}

func skip(s string) string { return strings.TrimLeft(s, " \t,") }

func cutToken(s string) (word, rest string) {
	i := strings.IndexAny(s, " \t,=\"")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// cutValue reads ="value" or =value.
func cutValue(s string) (v, rest string, ok bool) {
	s = strings.TrimLeft(s, " \t")
	if !strings.HasPrefix(s, "=") {
		return "", "", false
	}
	s = strings.TrimLeft(s[1:], " \t")
	if !strings.HasPrefix(s, `"`) {
		v, rest = cutToken(s)
		return v, rest, true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:], true
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), "", true
}
