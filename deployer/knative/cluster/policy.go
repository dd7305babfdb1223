package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	admission "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// policy is what the API server itself keeps in the managed namespaces,
// whoever writes and by whatever tool.
func (s Setup) policy() []runtime.Object {
	units := s.imageRules("object.spec.template.spec.containers")
	units = append(units, labelRules()...)
	units = append(units, s.limitRules()...)
	var all []runtime.Object
	add := func(name, group, version, resource string, rules []admission.Validation) {
		all = append(all, guard(name, group, version, resource, rules), bound(name))
	}
	add(Policy, "serving.knative.dev", "v1", "services", units)
	add(Policy+"-jobs", "batch", "v1", "jobs", s.imageRules("object.spec.template.spec.containers"))
	add(Policy+"-cronjobs", "batch", "v1", "cronjobs", s.imageRules("object.spec.jobTemplate.spec.template.spec.containers"))
	return all
}

// quote writes a CEL string; Validate has refused what would need escapes.
func quote(s string) string { return "'" + s + "'" }

func rule(message, expression string) admission.Validation {
	reason := metav1.StatusReasonForbidden
	return admission.Validation{Expression: expression, Message: message, Reason: &reason}
}

func (s Setup) imageRules(containers string) []admission.Validation {
	var prefixes []string
	for _, p := range sorted(s.Images) {
		prefixes = append(prefixes, quote(p))
	}
	return []admission.Validation{
		rule("images come from "+strings.Join(sorted(s.Images), ", "),
			fmt.Sprintf("%s.all(c, [%s].exists(p, c.image.startsWith(p)))", containers, strings.Join(prefixes, ", "))),
		rule("images are named by digest", containers+".all(c, c.image.contains('@sha256:'))"),
	}
}

func labelRules() []admission.Validation {
	const owner = "'" + LabelOwner + "'"
	return []admission.Validation{
		rule("the labels kuroko.dev/owner, service and environment are set",
			"has(object.metadata.labels) && ["+owner+", 'kuroko.dev/service', 'kuroko.dev/environment'].all(l, l in object.metadata.labels && object.metadata.labels[l] != '')"),
		rule("the owner of a service does not change",
			"oldObject == null || !has(oldObject.metadata.labels) || !("+owner+" in oldObject.metadata.labels) || "+
				"(has(object.metadata.labels) && "+owner+" in object.metadata.labels && object.metadata.labels["+owner+"] == oldObject.metadata.labels["+owner+"])"),
		rule("this namespace belongs to another project",
			"!("+owner+" in namespaceObject.metadata.labels) || "+
				"(has(object.metadata.labels) && "+owner+" in object.metadata.labels && object.metadata.labels["+owner+"] == namespaceObject.metadata.labels["+owner+"])"),
	}
}

// limitRules bound units by the tier that their namespace's label names; a
// namespace without a known tier takes no units.
func (s Setup) limitRules() []admission.Validation {
	const tier = "namespaceObject.metadata.labels['" + LabelTier + "']"
	const containers = "object.spec.template.spec.containers"
	names := slices.Sorted(maps.Keys(s.Tiers))
	var known []string
	for _, n := range names {
		known = append(known, quote(n))
	}
	all := []admission.Validation{
		rule("the namespace's label "+LabelTier+" names no tier", fmt.Sprintf("'%s' in namespaceObject.metadata.labels && %s in [%s]", LabelTier, tier, strings.Join(known, ", "))),
		rule("a unit has a memory limit", containers+".all(c, has(c.resources) && has(c.resources.limits) && 'memory' in c.resources.limits)"),
	}
	for _, n := range names {
		of := fmt.Sprintf("'%s' in namespaceObject.metadata.labels && %s == %s", LabelTier, tier, quote(n))
		l := s.Tiers[n]
		for _, r := range []struct{ resource, limit string }{{"memory", l.Memory}, {"cpu", l.CPU}} {
			if r.limit == "" {
				continue
			}
			all = append(all, rule(fmt.Sprintf("%s above tier %s's %s", r.resource, n, r.limit),
				fmt.Sprintf("!(%s) || %s.all(c, !has(c.resources) || !has(c.resources.limits) || !('%s' in c.resources.limits) || quantity(string(c.resources.limits['%s'])).compareTo(quantity('%s')) <= 0)",
					of, containers, r.resource, r.resource, r.limit)))
		}
		if l.MaxScale > 0 {
			const key = "'autoscaling.knative.dev/max-scale'"
			at := "object.spec.template.metadata.annotations"
			all = append(all, rule(fmt.Sprintf("scale.max is missing, or above tier %s's %d", n, l.MaxScale),
				fmt.Sprintf("!(%s) || (has(object.spec.template.metadata) && has(%s) && %s in %s && int(%s[%s]) > 0 && int(%s[%s]) <= %d)", of, at, key, at, at, key, at, key, l.MaxScale)))
		}
	}
	return all
}

// guard is a policy over one resource, in the managed namespaces.
func guard(name, group, version, resource string, rules []admission.Validation) *admission.ValidatingAdmissionPolicy {
	fail := admission.Fail
	return &admission.ValidatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admission.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admission.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail, Validations: rules,
			MatchConstraints: &admission.MatchResources{ResourceRules: []admission.NamedRuleWithOperations{{RuleWithOperations: admission.RuleWithOperations{
				Operations: []admission.OperationType{admission.Create, admission.Update},
				Rule:       admission.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: []string{resource}},
			}}}},
		},
	}
}

func bound(name string) *admission.ValidatingAdmissionPolicyBinding {
	return &admission.ValidatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admission.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicyBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admission.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admission.ValidationAction{admission.Deny, admission.Audit},
			MatchResources: &admission.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{LabelManaged: "true"}}},
		},
	}
}
