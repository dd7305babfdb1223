//go:build e2e

package main

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/internal/devenv/devtest"
)

// A person keeps a service's secrets without kubectl: the command that a
// deploy's message names sets what was missing, nothing shows a value, and
// what is not the service's stays.
func TestSecretCommands(t *testing.T) {
	cluster := devtest.NewCluster(t)
	kube, ns := cluster.Kube, cluster.Namespace
	l := labOf(t, cluster.Start(t), nil)
	l.environ = append(l.environ, "KUBECONFIG="+cluster.Kubeconfig, "GITLAB_USER_LOGIN=ann")
	l.write(map[string]string{
		"faas.yml": "version: 1\nservice: shop\nprovider: {runtime: nodejs18, secrets: {TOKEN: shop/token, THEIRS: by-hand/token}}\nfunctions: {a: {handler: a.handler}}\n",
		"a.js":     "exports.handler = () => 1",
	})
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "by-hand"}, StringData: map[string]string{"token": "theirs"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const value = "s3cret-value-of-ann"
	for _, c := range []struct {
		args  []string
		stdin string
		code  int
		says  []string // in what is printed
	}{
		{[]string{"secret", "list"}, "", 0, []string{"TOKEN", "missing", "faas secret set TOKEN --env test", "THEIRS", "kept by others"}},
		{[]string{"secret", "set", "TOKEN"}, "", 2, []string{"standard input is empty"}},
		{[]string{"secret", "set", "TOKEN", value}, "", 2, []string{"comes from standard input alone"}},
		{[]string{"secret", "set", "TOKEN"}, value + "\n", 0, []string{"TOKEN is set (shop/token in test)"}},
		{[]string{"secret", "list"}, "", 0, []string{"shop/token", "set", "ann on "}},
		{[]string{"secret", "list", "--json"}, "", 0, []string{`"by": "ann on `, `"state": "set"`}},
		{[]string{"secret", "set", "THEIRS"}, value, 78, []string{"secret by-hand belongs to nobody we know", "E1403"}},
		{[]string{"secret", "unset", "TOKEN"}, "", 0, []string{"TOKEN is unset"}},
		{[]string{"secret", "unset", "TOKEN"}, "", 2, []string{"has no key token"}},
		{[]string{"secret", "set", "OTHER"}, value, 2, []string{"use one of: THEIRS, TOKEN"}},
	} {
		l.stdin = c.stdin
		code, out, log := l.faas(c.args...)
		if code != c.code {
			t.Errorf("%q: exit %d, want %d\n%s%s", c.args, code, c.code, out, log)
		}
		for _, s := range c.says {
			if !strings.Contains(out+log, s) {
				t.Errorf("%q: want %q in\n%s%s", c.args, s, out, log)
			}
		}
		if strings.Contains(out+log, value) {
			t.Errorf("%q shows the value", c.args)
		}
		if s, err := kube.CoreV1().Secrets(ns).Get(t.Context(), "shop", metav1.GetOptions{}); c.args[1] == "set" && c.code == 0 && (err != nil || string(s.Data["token"]) != value) {
			t.Errorf("stored %q, %v", s.Data, err)
		}
	}
	if s, err := kube.CoreV1().Secrets(ns).Get(t.Context(), "by-hand", metav1.GetOptions{}); err != nil || string(s.Data["token"]) != "theirs" {
		t.Errorf("by-hand holds %q, %v", s.Data, err)
	}
}
