package cluster

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/kuroko-faas/kuroko/deployer/knative"
)

// rules are rights as RBAC writes them.
func rules(rights []knative.Right) []rbac.PolicyRule {
	var all []rbac.PolicyRule
	for _, r := range rights {
		name := r.Resource
		if r.Subresource != "" {
			name += "/" + r.Subresource
		}
		all = append(all, rbac.PolicyRule{APIGroups: []string{r.Group}, Resources: []string{name}, Verbs: r.Verbs})
	}
	return all
}

// readRights are a function developer's: everything about his functions but
// their secrets.
func readRights() []knative.Right {
	look := []string{"get", "list", "watch"}
	return []knative.Right{
		{Group: "serving.knative.dev", Resource: "services", Verbs: look},
		{Group: "serving.knative.dev", Resource: "revisions", Verbs: look},
		{Group: "serving.knative.dev", Resource: "routes", Verbs: look},
		{Group: "serving.knative.dev", Resource: "configurations", Verbs: look},
		{Group: "coordination.k8s.io", Resource: "leases", Verbs: look},
		{Group: "batch", Resource: "jobs", Verbs: look},
		{Group: "batch", Resource: "cronjobs", Verbs: look},
		{Resource: "configmaps", Verbs: look},
		{Resource: "pods", Verbs: look},
		{Resource: "pods", Subresource: "log", Verbs: []string{"get"}},
		{Resource: "events", Verbs: look},
		{Resource: "resourcequotas", Verbs: look},
	}
}

// clusterRoles are bound in each namespace; only the list of records reaches
// over all of them.
func (s Setup) clusterRoles() []runtime.Object {
	role := func(name string, rules []rbac.PolicyRule) *rbac.ClusterRole {
		return &rbac.ClusterRole{TypeMeta: metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: "ClusterRole"}, ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}
	}
	all := []runtime.Object{
		role(DeployRole, rules(knative.Rights())),
		role(SecretRole, rules(knative.SecretRights())),
		role(ReadRole, rules(readRights())),
	}
	if r := s.routeRole(); r != nil {
		all = append(all, r)
	}
	if s.Image != "" {
		all = append(all, role(WatchdogRole, rules(knative.SweepRights())),
			role(WatchdogRole+"-scopes", []rbac.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"list"}}}))
	}
	return all
}

// routeRole lets who deploys ask routes at the gateway's Service, and nothing
// else there; nil: there is none.
func (s Setup) routeRole() runtime.Object {
	ns, service, named := strings.Cut(s.IngressService, "/")
	if !named {
		return nil
	}
	right, name := knative.RouteRight(service)
	all := rules([]knative.Right{right})
	all[0].ResourceNames = []string{name}
	return &rbac.Role{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: "Role"},
		ObjectMeta: metav1.ObjectMeta{Name: RouteRole, Namespace: ns}, Rules: all,
	}
}

// routeBinding binds it for who deploys into one place of functions; nil:
// there is none.
func (s Setup) routeBinding(n Namespace, deployers []rbac.Subject) runtime.Object {
	ns, _, named := strings.Cut(s.IngressService, "/")
	if !named {
		return nil
	}
	b := binding(ns, RouteRole+"-"+n.Name, RouteRole, deployers)
	b.RoleRef.Kind = "Role"
	return b
}

func binding(namespace, name, role string, subjects []rbac.Subject) *rbac.RoleBinding {
	return &rbac.RoleBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: "RoleBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: role}, Subjects: subjects,
	}
}

func account(namespace, name string, token bool) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		AutomountServiceAccountToken: &token,
	}
}

func accountSubject(namespace, name string) rbac.Subject {
	return rbac.Subject{Kind: rbac.ServiceAccountKind, Namespace: namespace, Name: name}
}

func rbacSubjects(all []Subject) []rbac.Subject {
	var out []rbac.Subject
	for _, s := range all {
		out = append(out, rbac.Subject{APIGroup: rbac.GroupName, Kind: s.Kind, Name: s.Name})
	}
	return out
}

// namespace is one place of functions and who may do what in it.
func (s Setup) namespace(n Namespace) []runtime.Object {
	labels := map[string]string{
		LabelManaged: "true", LabelTier: n.Tier,
		// Knative's own queue-proxy decides how strict this can be.
		"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted",
	}
	if n.Owner != "" {
		labels[LabelOwner] = n.Owner
	}
	deployers := append([]rbac.Subject{accountSubject(n.Name, DeployRole)}, rbacSubjects(n.Deployers)...)
	all := []runtime.Object{
		&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels}},
		account(n.Name, DeployRole, false),
		binding(n.Name, DeployRole, DeployRole, deployers),
	}
	if b := s.routeBinding(n, deployers); b != nil {
		all = append(all, b)
	}
	if len(n.Readers) > 0 {
		all = append(all, binding(n.Name, ReadRole, ReadRole, rbacSubjects(n.Readers)))
	}
	if s.Image != "" {
		all = append(all, binding(n.Name, WatchdogRole, WatchdogRole, []rbac.Subject{accountSubject(s.System, Watchdog)}))
	}
	return all
}

// healthPort is where the watchdog's probe asks.
const healthPort = 8081

// watchdog runs faasctl sweep --watch, two of them, of which one works.
func (s Setup) watchdog() []runtime.Object {
	meta := metav1.ObjectMeta{Name: Watchdog, Namespace: s.System}
	labels := map[string]string{"app.kubernetes.io/name": Watchdog}
	yes, no, two, one := true, false, int32(2), intstr.FromInt32(1)
	user := int64(65532)
	pod := corev1.PodSpec{
		ServiceAccountName: Watchdog, AutomountServiceAccountToken: &yes,
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{
			Name: "watchdog", Image: s.Image,
			Command: []string{"faasctl", "sweep", "--watch", "--lead-in", s.System, "--health", ":8081"},
			Ports:   []corev1.ContainerPort{{Name: "health", ContainerPort: healthPort}},
			LivenessProbe: &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("health")}},
				PeriodSeconds: 20, FailureThreshold: 3,
			},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("20m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
			},
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
		}},
		TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
		}},
	}
	if s.RegistrySecret != "" {
		const at = "/registry"
		pod.Volumes = []corev1.Volume{{Name: "registry", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: s.RegistrySecret, Items: []corev1.KeyToPath{{Key: corev1.DockerConfigJsonKey, Path: "config.json"}},
		}}}}
		c := &pod.Containers[0]
		c.Env = []corev1.EnvVar{{Name: "DOCKER_CONFIG", Value: at}}
		c.VolumeMounts = []corev1.VolumeMount{{Name: "registry", MountPath: at, ReadOnly: true}}
	}
	return []runtime.Object{
		&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: s.System, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}},
		account(s.System, Watchdog, true),
		&rbac.Role{
			TypeMeta: metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: "Role"}, ObjectMeta: meta,
			Rules: []rbac.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get", "create", "update"}}},
		},
		func() *rbac.RoleBinding {
			b := binding(s.System, Watchdog, Watchdog, []rbac.Subject{accountSubject(s.System, Watchdog)})
			b.RoleRef.Kind = "Role"
			return b
		}(),
		&rbac.ClusterRoleBinding{
			TypeMeta: metav1.TypeMeta{APIVersion: rbac.SchemeGroupVersion.String(), Kind: "ClusterRoleBinding"}, ObjectMeta: metav1.ObjectMeta{Name: WatchdogRole + "-scopes"},
			RoleRef:  rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: WatchdogRole + "-scopes"},
			Subjects: []rbac.Subject{accountSubject(s.System, Watchdog)},
		},
		&appsv1.Deployment{
			TypeMeta: metav1.TypeMeta{APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment"}, ObjectMeta: meta,
			Spec: appsv1.DeploymentSpec{
				Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
			},
		},
		&policyv1.PodDisruptionBudget{
			TypeMeta: metav1.TypeMeta{APIVersion: policyv1.SchemeGroupVersion.String(), Kind: "PodDisruptionBudget"}, ObjectMeta: meta,
			Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}},
		},
	}
}

// sorted is a copy in order, so that equal setups render equal text.
func sorted(all []string) []string { return slices.Sorted(slices.Values(all)) }
