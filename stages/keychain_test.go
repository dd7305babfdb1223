package stages

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuroko-faas/kuroko/builder/registry"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
	"github.com/kuroko-faas/kuroko/ci"
)

// TestWhereCredentialsComeFrom: GitLab's own registry, docker's configuration
// and its helper programs, each for its registry and no other.
func TestWhereCredentialsComeFrom(t *testing.T) {
	bin, home := t.TempDir(), t.TempDir()
	helper := "#!/bin/sh\nread host\n[ \"$1\" = get ] || exit 1\ncase $host in\n" +
		"registry.cn-hangzhou.aliyuncs.com) echo '{\"ServerURL\":\"'$host'\",\"Username\":\"cr_temp_user\",\"Secret\":\"sts-token\"}';;\n" +
		"*) echo 'credentials not found in native keychain'; exit 1;;\nesac\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-acr"), []byte(helper), 0o755); err != nil {
		t.Fatal(err)
	}
	config := `{"auths":{"mirror.example.com":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("robot:mirror-pass")) + `"},
		"team-registry.cn-shanghai.cr.aliyuncs.com":{"username":"acr-user","password":"acr-pass"}},
		"credHelpers":{"registry.cn-hangzhou.aliyuncs.com":"acr","gone.example.com":"acr","broken.example.com":"no-such-helper"}}`
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	keys := keychain{ci: ci.Registry{Host: "registry.gitlab.example:5050", User: "gitlab-ci-token", Password: "job-token"}}
	for host, want := range map[string]string{
		"registry.gitlab.example:5050":              "gitlab-ci-token:job-token",
		"mirror.example.com":                        "robot:mirror-pass",
		"team-registry.cn-shanghai.cr.aliyuncs.com": "acr-user:acr-pass",
		"registry.cn-hangzhou.aliyuncs.com":         "cr_temp_user:sts-token",
		"gone.example.com":                          ":", // the helper knows nothing of it: anonymous
		"elsewhere.example.com":                     ":",
		"registry.gitlab.example":                   ":", // another port is another registry
	} {
		reg, err := name.NewRegistry(host)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := keys.Resolve(reg)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		cfg, err := authn.Authorization(t.Context(), auth)
		if err != nil || cfg.Username+":"+cfg.Password != want {
			t.Errorf("%s: %s:%s, %v; want %s", host, cfg.Username, cfg.Password, err, want)
		}
	}
}

// TestHelperOutsideGitLab: without CI_REGISTRY only docker's configuration
// counts, also for a host of the same name.
func TestHelperOutsideGitLab(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	reg, err := name.NewRegistry("registry.gitlab.example:5050")
	if err != nil {
		t.Fatal(err)
	}
	if auth, err := (keychain{}).Resolve(reg); err != nil || auth != authn.Anonymous {
		t.Errorf("%v, %v", auth, err)
	}
}

// TestACRChallenge is Alibaba Cloud's way of asking: a token service on another
// host, whose service name has colons and a number in it, and a token under
// both of the names that clients look for.
func TestACRChallenge(t *testing.T) {
	srv := registrytest.New(t)
	const service = "registry.aliyuncs.com:cn-hangzhou:26842"
	var asked atomic.Value
	auth := http.NewServeMux()
	auth.HandleFunc("/auth", func(w http.ResponseWriter, r *http.Request) {
		user, pass, _ := r.BasicAuth()
		asked.Store(r.URL.Query().Get("service") + " " + strings.Join(r.URL.Query()["scope"], ",") + " " + user + ":" + pass)
		_, _ = w.Write([]byte(`{"access_token":"t1","token":"t1"}`))
	})
	srv.Auth(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/auth" {
			auth.ServeHTTP(w, r)
			return true
		}
		if r.Header.Get("Authorization") == "Bearer t1" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+srv.Host+`/auth",service="`+service+`"`)
		registrytest.Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return true
	})
	keys := keychain{ci: ci.Registry{Host: srv.Host, User: "acr-user", Password: "acr-pass"}}
	repo, err := name.NewRepository(srv.Host + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	s := registry.New(registry.Options{Keychain: keys}).Session()
	if _, err := s.HasBlob(t.Context(), repo, v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}); err != nil {
		t.Fatal(err)
	}
	if want := service + " repository:team/app:pull,push acr-user:acr-pass"; asked.Load() != want {
		t.Errorf("asked for %q, want %q", asked.Load(), want)
	}
}
