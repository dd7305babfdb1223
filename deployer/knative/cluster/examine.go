package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"

	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// Level is how bad a finding is.
type Level string

// The levels. Unknown is what we were not allowed, or not able, to see.
const (
	OK      Level = "ok"
	Warn    Level = "warn"
	Fail    Level = "fail"
	Unknown Level = "unknown"
)

// Finding is one thing that was looked at.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	Fix   string `json:"fix,omitempty"` // empty where there is nothing to do
}

// Doctor examines a cluster. It only reads.
type Doctor struct {
	Kube kubernetes.Interface
	// Knative is Knative Serving's namespace; default knative-serving. System
	// is the watchdog's; default kuroko-system.
	Knative, System string
	// Domain is what clusters.yml says; empty: not compared.
	Domain string
	// Namespaces are places of functions to look into.
	Namespaces []string
	// Image is looked up in its registry with each namespace's pull
	// credentials; empty: one that runs there.
	Image string
	// Transport is the way to registries; nil: go-containerregistry's.
	Transport http.RoundTripper
	Now       func() time.Time // default time.Now
}

// Oldest versions that are known to do. Admission policies are stable since
// Kubernetes 1.30; Knative 1.18 is the oldest whose client library we use.
const (
	oldestKubernetes = "1.30"
	oldestKnative    = "1.18"
)

// Examine looks at everything. The error is that the cluster did not answer
// at all; whatever else is wrong is a finding.
func (d Doctor) Examine(ctx context.Context) ([]Finding, error) {
	if d.Knative == "" {
		d.Knative = "knative-serving"
	}
	if d.System == "" {
		d.System = "kuroko-system"
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	v, err := d.Kube.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("cluster: read the server's version: %w", err)
	}
	all := []Finding{atLeast("kubernetes", v.GitVersion, oldestKubernetes, "upgrade the cluster: the admission policy needs it")}
	all = append(all, d.apis()...)
	all = append(all, d.serving(ctx)...)
	all = append(all, d.settings(ctx)...)
	all = append(all, d.fence(ctx), d.watchdog(ctx))
	for _, ns := range d.Namespaces {
		all = append(all, d.namespace(ctx, ns)...)
	}
	return all, nil
}

func atLeast(check, have, want, fix string) Finding {
	v, err := version.ParseGeneric(have)
	switch {
	case err != nil:
		return Finding{check, Unknown, fmt.Sprintf("version %q is not understood", have), ""}
	case v.LessThan(version.MustParseGeneric(want)):
		return Finding{check, Fail, fmt.Sprintf("version %s is older than %s", have, want), fix}
	}
	return Finding{check, OK, "version " + have, ""}
}

// seen makes the finding of a read that did not work.
func seen(check string, err error, missing Finding) Finding {
	missing.Check = check
	if apierrors.IsNotFound(err) {
		return missing
	}
	return Finding{check, Unknown, "could not be read: " + strings.Join(strings.Fields(err.Error()), " "), "run the doctor with an account that may read it"}
}

// apis are the kinds that the target writes.
func (d Doctor) apis() []Finding {
	var all []Finding
	for _, a := range []struct{ check, group, resource, fix string }{
		{"lease api", "coordination.k8s.io/v1", "leases", "this is part of Kubernetes; check the API server"},
		{"admission policy api", "admissionregistration.k8s.io/v1", "validatingadmissionpolicies", "upgrade to Kubernetes 1.30: without it nothing but the runner keeps the platform's limits"},
		{"knative api", "serving.knative.dev/v1", "services", "install Knative Serving"},
		{"knative revisions", "serving.knative.dev/v1", "revisions", "install Knative Serving"},
	} {
		list, err := d.Kube.Discovery().ServerResourcesForGroupVersion(a.group)
		f := Finding{a.check, Fail, "the cluster has no " + a.resource + "." + a.group, a.fix}
		switch {
		case err != nil && !apierrors.IsNotFound(err):
			f = seen(a.check, err, f)
		case err == nil:
			for _, r := range list.APIResources {
				if r.Name == a.resource {
					f = Finding{a.check, OK, a.resource + " in " + a.group, ""}
				}
			}
		}
		all = append(all, f)
	}
	return all
}

// serving looks at Knative's own programs.
func (d Doctor) serving(ctx context.Context) []Finding {
	var all []Finding
	for _, name := range []string{"controller", "webhook", "activator", "autoscaler"} {
		dep, err := d.Kube.AppsV1().Deployments(d.Knative).Get(ctx, name, metav1.GetOptions{})
		check := "knative " + name
		if err != nil {
			all = append(all, seen(check, err, Finding{"", Fail, fmt.Sprintf("namespace %s has no deployment %s", d.Knative, name), "install Knative Serving, or name its namespace with --knative"}))
			continue
		}
		if dep.Status.AvailableReplicas == 0 {
			all = append(all, Finding{check, Fail, "no pod of it is available", fmt.Sprintf("kubectl -n %s describe deployment %s", d.Knative, name)})
			continue
		}
		f := Finding{check, OK, fmt.Sprintf("%d available", dep.Status.AvailableReplicas), ""}
		if name == "controller" {
			if v := dep.Labels["app.kubernetes.io/version"]; v != "" {
				// A build from the main branch has a date for a version.
				if f = atLeast(check, v, oldestKnative, "upgrade Knative Serving"); f.Level == Unknown {
					f = Finding{check, OK, f.Text + "; taken as current", ""}
				}
			}
		}
		all = append(all, f)
	}
	return all
}

// settings are the ConfigMaps that change how a release behaves.
func (d Doctor) settings(ctx context.Context) []Finding {
	read := func(name string, judge func(map[string]string) []Finding) []Finding {
		m, err := d.Kube.CoreV1().ConfigMaps(d.Knative).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return []Finding{seen(name, err, Finding{"", Fail, fmt.Sprintf("namespace %s has no %s", d.Knative, name), "install Knative Serving, or name its namespace with --knative"})}
		}
		return judge(m.Data)
	}
	var all []Finding
	all = append(all, read("config-domain", d.domain)...)
	all = append(all, read("config-network", network)...)
	all = append(all, read("config-autoscaler", autoscaler)...)
	all = append(all, read("config-features", features)...)
	all = append(all, read("config-gc", func(m map[string]string) []Finding {
		// Our revisions carry no-gc, so that only our own records decide.
		return []Finding{{"config-gc", OK, "retain-since-last-active-time " + or(m["retain-since-last-active-time"], "15h") + "; revisions of releases are exempt (no-gc)", ""}}
	})...)
	return all
}

func or(v, fallback string) string {
	if v == "" {
		return fallback
	}
	return v
}

func (d Doctor) domain(m map[string]string) []Finding {
	const check = "config-domain"
	var domains []string
	for k := range m {
		if k != "_example" {
			domains = append(domains, k)
		}
	}
	switch {
	case len(domains) == 0:
		return []Finding{{check, Fail, "no domain is set: units would answer below svc.cluster.local or example.com", "kubectl -n " + d.Knative + ` patch configmap config-domain --type merge -p '{"data":{"YOUR.DOMAIN":""}}'`}}
	case d.Domain != "":
		for _, have := range domains {
			if have == d.Domain {
				return []Finding{{check, OK, have, ""}}
			}
		}
		return []Finding{{check, Fail, fmt.Sprintf("clusters.yml says %s, the cluster %s", d.Domain, strings.Join(sorted(domains), ", ")), "correct domain in clusters.yml, or config-domain"}}
	}
	return []Finding{{check, OK, strings.Join(sorted(domains), ", "), ""}}
}

func network(m map[string]string) []Finding {
	const check = "config-network"
	class := or(m["ingress-class"], m["ingress.class"])
	if class == "" {
		return []Finding{{check, Warn, "no ingress class is set: Knative takes Istio's", "set ingress-class in config-network to the ingress that is installed"}}
	}
	var all []Finding
	all = append(all, Finding{check, OK, "ingress class " + class, ""})
	if t := m["tag-template"]; t != "" && !strings.Contains(t, ".Tag") {
		all = append(all, Finding{check, Fail, "tag-template " + t + " leaves the tag out: a revision could not be proven before it gets traffic", "use {{.Tag}}-{{.Name}}"})
	}
	return all
}

func autoscaler(m map[string]string) []Finding {
	const check = "config-autoscaler"
	if strings.EqualFold(m["enable-scale-to-zero"], "false") {
		return []Finding{{check, Warn, "enable-scale-to-zero is false: units with scale.min 0, and kept revisions, never stop", "set it to true, unless that is meant"}}
	}
	return []Finding{{check, OK, "scale to zero, stable-window " + or(m["stable-window"], "60s"), ""}}
}

// features are those that the templates of units use.
func features(m map[string]string) []Finding {
	const check = "config-features"
	for _, f := range []string{"kubernetes.podspec-volumes-emptydir"} {
		if strings.EqualFold(m[f], "disabled") {
			return []Finding{{check, Warn, f + " is disabled: jobs and writable folders can't have one", "set it to enabled"}}
		}
	}
	if strings.EqualFold(m["multi-container"], "disabled") {
		return []Finding{{check, Warn, "multi-container is disabled", "set it to enabled where plugins bring containers of their own"}}
	}
	return []Finding{{check, OK, "nothing that units need is disabled", ""}}
}

// fence is the admission policy.
func (d Doctor) fence(ctx context.Context) Finding {
	const check, fix = "admission policy", "faasctl render cluster writes it; kubectl apply it"
	p, err := d.Kube.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, Policy, metav1.GetOptions{})
	if err != nil {
		return seen(check, err, Finding{"", Fail, "there is none: what the runner refuses, kubectl with the same credentials does not", fix})
	}
	b, err := d.Kube.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Get(ctx, Policy, metav1.GetOptions{})
	if err != nil {
		return seen(check, err, Finding{"", Fail, "the policy is there and bound to nothing", fix})
	}
	for _, a := range b.Spec.ValidationActions {
		if a == "Deny" {
			return Finding{check, OK, fmt.Sprintf("%d rules, enforced in namespaces with %s=true", len(p.Spec.Validations), LabelManaged), ""}
		}
	}
	return Finding{check, Fail, "the policy only warns", fix}
}

// watchdog looks whether rollouts of dead jobs are taken back.
func (d Doctor) watchdog(ctx context.Context) Finding {
	const check = "watchdog"
	dep, err := d.Kube.AppsV1().Deployments(d.System).Get(ctx, Watchdog, metav1.GetOptions{})
	if err != nil {
		return seen(check, err, Finding{"", Fail, fmt.Sprintf("namespace %s has none: the rollout of a job that died stays where it was until the next deploy", d.System), "faasctl render cluster --image … writes it; or run faasctl sweep from a schedule"})
	}
	look := fmt.Sprintf("kubectl -n %s logs deployment/%s", d.System, Watchdog)
	if dep.Status.AvailableReplicas == 0 {
		return Finding{check, Fail, "no pod of it is available", look}
	}
	l, err := d.Kube.CoordinationV1().Leases(d.System).Get(ctx, knative.WatchdogLease, metav1.GetOptions{})
	if err != nil {
		return seen(check, err, Finding{"", Fail, "it runs and has never led", look})
	}
	if l.Spec.RenewTime == nil || d.Now().Sub(l.Spec.RenewTime.Time) > time.Minute {
		return Finding{check, Fail, "nobody renews its lease", look}
	}
	who := "nobody"
	if l.Spec.HolderIdentity != nil {
		who = or(*l.Spec.HolderIdentity, who)
	}
	return Finding{check, OK, fmt.Sprintf("%d available, %s leads", dep.Status.AvailableReplicas, who), ""}
}

// namespace looks at one place of functions.
func (d Doctor) namespace(ctx context.Context, ns string) []Finding {
	check := "namespace " + ns
	n, err := d.Kube.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
	if err != nil {
		return []Finding{seen(check, err, Finding{"", Fail, "there is none", "faasctl render cluster --namespace " + ns + "=TIER writes it"})}
	}
	f := Finding{check, OK, "tier " + n.Labels[LabelTier], ""}
	if n.Labels[LabelManaged] != "true" || n.Labels[LabelTier] == "" {
		f = Finding{check, Fail, fmt.Sprintf("it lacks the labels %s and %s: the admission policy does not guard it", LabelManaged, LabelTier), "faasctl render cluster --namespace " + ns + "=TIER writes them"}
	}
	return []Finding{f, d.pull(ctx, ns)}
}

// pull asks the registry for an image with the credentials that the
// namespace's functions pull with. Nodes may still have another way.
func (d Doctor) pull(ctx context.Context, ns string) Finding {
	check := "registry from " + ns
	keys, err := d.pullKeys(ctx, ns)
	if err != nil {
		return seen(check, err, Finding{"", Fail, err.Error(), "create the pull secret that the service account names"})
	}
	image := d.Image
	if image == "" {
		pods, err := d.Kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: knative.LabelOwner})
		if err != nil {
			return seen(check, err, Finding{})
		}
		for _, p := range pods.Items {
			for _, c := range p.Spec.Containers {
				if c.Name != "queue-proxy" {
					image = c.Image
				}
			}
		}
	}
	if image == "" {
		return Finding{check, Unknown, "nothing runs there whose image could be asked for", "name one with --image"}
	}
	ref, err := name.ParseReference(image)
	if err != nil {
		return Finding{check, Unknown, err.Error(), "name an image with --image"}
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	o := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(keys)}
	if d.Transport != nil {
		o = append(o, remote.WithTransport(d.Transport))
	}
	_, err = remote.Head(ref, o...)
	var answer *transport.Error
	switch {
	case err == nil:
		return Finding{check, OK, fmt.Sprintf("%s has %s for the namespace's credentials (%d)", ref.Context().RegistryStr(), ref.Context().RepositoryStr(), len(keys)), ""}
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		return Finding{check, Fail, fmt.Sprintf("%s refuses the namespace's credentials (%d): %d", ref.Context().RegistryStr(), len(keys), answer.StatusCode), "renew the pull secret, and name it in imagePullSecrets of the namespace's default service account"}
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return Finding{check, Fail, image + " is not in its registry any more", "a clean-up policy may have taken it; deploy again"}
	}
	return Finding{check, Unknown, "from here the registry did not answer: " + strings.Join(strings.Fields(err.Error()), " "), "run the doctor where the cluster's nodes are"}
}

// pullKeychain are pull secrets' credentials by registry.
type pullKeychain map[string]authn.AuthConfig

// Resolve implements authn.Keychain.
func (k pullKeychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if c, ok := k[r.RegistryStr()]; ok {
		return authn.FromConfig(c), nil
	}
	return authn.Anonymous, nil
}

// pullKeys reads the pull secrets of the account that functions run under.
func (d Doctor) pullKeys(ctx context.Context, ns string) (pullKeychain, error) {
	account, err := d.Kube.CoreV1().ServiceAccounts(ns).Get(ctx, "default", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	keys := pullKeychain{}
	for _, s := range account.ImagePullSecrets {
		secret, err := d.Kube.CoreV1().Secrets(ns).Get(ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("pull secret %s: %w", s.Name, err)
		}
		var file struct {
			Auths map[string]authn.AuthConfig `json:"auths"`
		}
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			// The error would quote what may be a password.
			return nil, fmt.Errorf("pull secret %s is no docker configuration", s.Name)
		}
		for host, c := range file.Auths {
			host = strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://")
			host, _, _ = strings.Cut(host, "/")
			keys[host] = c
		}
	}
	return keys, nil
}
