package knative

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kuroko-faas/kuroko/deployer"
)

var _ deployer.Secrets = (*Target)(nil)

// SecretRights are all that `faas secret` needs: a Role for people, not for
// jobs.
func SecretRights() []Right {
	return []Right{{Resource: "secrets", Verbs: []string{"get", "list", "create", "patch"}}}
}

// ownSecret checks that a Secret is the scope's.
func ownSecret(scope deployer.Scope, name string, labels map[string]string) error {
	return ours(scope, "secret", name, labels)
}

// wasSet is who set a key last, and when, in [AnnotationKeys].
type wasSet struct {
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// setOf reads [AnnotationKeys]; what somebody else wrote there is nothing.
func setOf(m *metav1.ObjectMeta) map[string]wasSet {
	all := map[string]wasSet{}
	if json.Unmarshal([]byte(m.Annotations[AnnotationKeys]), &all) != nil || all == nil {
		return map[string]wasSet{}
	}
	return all
}

// Secrets implements [deployer.Secrets].
func (t *Target) Secrets(ctx context.Context, scope deployer.Scope) ([]deployer.SecretKey, error) {
	list, err := read(ctx, t, "list secrets of "+scope.String(), func(ctx context.Context) (*metav1.PartialObjectMetadataList, error) {
		return t.meta.Resource(secretResource).Namespace(t.namespace(scope)).List(ctx, metav1.ListOptions{LabelSelector: selector(scopeLabels(scope))})
	})
	if err != nil {
		return nil, err
	}
	var all []deployer.SecretKey
	for _, m := range list.Items {
		if m.Name == timerSecret(scope) {
			continue // the platform's own
		}
		c, err := t.contents(ctx, scope, deployer.SecretSource(m.Name))
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue // removed meanwhile
		}
		set := setOf(&c.ObjectMeta)
		for key := range c.Data {
			all = append(all, deployer.SecretKey{Secret: m.Name, Key: key, By: set[key].By, At: set[key].At})
		}
	}
	slices.SortFunc(all, func(a, b deployer.SecretKey) int {
		return cmp.Or(cmp.Compare(a.Secret, b.Secret), cmp.Compare(a.Key, b.Key))
	})
	return all, nil
}

// SetSecret implements [deployer.Secrets].
func (t *Target) SetSecret(ctx context.Context, scope deployer.Scope, k deployer.SecretKey, value []byte) error {
	return t.changeSecret(ctx, scope, k, func(m *metav1.PartialObjectMetadata) error {
		if m == nil {
			return t.createSecret(ctx, scope, k, value)
		}
		set := setOf(&m.ObjectMeta)
		set[k.Key] = wasSet{k.By, k.At}
		return t.patchSecret(ctx, m, map[string][]byte{k.Key: value}, set)
	})
}

// UnsetSecret implements [deployer.Secrets].
func (t *Target) UnsetSecret(ctx context.Context, scope deployer.Scope, k deployer.SecretKey) error {
	return t.changeSecret(ctx, scope, k, func(m *metav1.PartialObjectMetadata) error {
		none := fmt.Errorf("knative: key %s of secret %s: %w", k.Key, k.Secret, deployer.ErrNotFound)
		if m == nil {
			return none
		}
		c, err := t.contents(ctx, scope, deployer.SecretSource(k.Secret))
		if err != nil {
			return err
		}
		if c == nil || !c.has(k.Key) {
			return none
		}
		set := setOf(&m.ObjectMeta)
		delete(set, k.Key)
		return t.patchSecret(ctx, m, map[string][]byte{k.Key: nil}, set)
	})
}

// changeSecret hands change the Secret's metadata, nil where there is none,
// after it has looked at the owner; again when somebody else was faster.
func (t *Target) changeSecret(ctx context.Context, scope deployer.Scope, k deployer.SecretKey, change func(*metav1.PartialObjectMetadata) error) error {
	for n := 1; ; n++ {
		m, err := t.metadata(ctx, scope, deployer.SecretSource(k.Secret))
		if err != nil {
			return err
		}
		if m != nil {
			if err := ownSecret(scope, k.Secret, m.Labels); err != nil {
				return err
			}
		}
		err = change(m)
		again := errors.Is(err, deployer.ErrConflict) || errors.Is(err, deployer.ErrExists) || errors.Is(err, deployer.ErrUnavailable)
		if !again || n == tries {
			return err
		}
		if err := sleep(ctx, t.cfg.Times.Retry/2+rand.N(t.cfg.Times.Retry)); err != nil {
			return err
		}
	}
}

func (t *Target) createSecret(ctx context.Context, scope deployer.Scope, k deployer.SecretKey, value []byte) error {
	note, err := json.Marshal(map[string]wasSet{k.Key: {k.By, k.At}})
	if err != nil {
		return err
	}
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: k.Secret, Labels: scopeLabels(scope), Annotations: map[string]string{AnnotationKeys: string(note)}},
		Type:       corev1.SecretTypeOpaque, Data: map[string][]byte{k.Key: value},
	}
	_, err = once(ctx, t, "create secret "+k.Secret, func(ctx context.Context) (struct{}, error) {
		_, err := t.kube.CoreV1().Secrets(t.namespace(scope)).Create(ctx, s, metav1.CreateOptions{})
		return struct{}{}, err
	})
	return err
}

// patchSecret changes these keys, nil removing one, and nothing else, where
// the Secret still is the version m: no other value is read for it.
func (t *Target) patchSecret(ctx context.Context, m *metav1.PartialObjectMetadata, data map[string][]byte, set map[string]wasSet) error {
	note, err := json.Marshal(set)
	if err != nil {
		return err
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": m.ResourceVersion, "annotations": map[string]string{AnnotationKeys: string(note)}},
		"data":     data,
	})
	if err != nil {
		return err
	}
	defer clear(body)
	_, err = once(ctx, t, "change secret "+m.Name, func(ctx context.Context) (*metav1.PartialObjectMetadata, error) {
		return t.meta.Resource(secretResource).Namespace(m.Namespace).Patch(ctx, m.Name, types.MergePatchType, body, metav1.PatchOptions{})
	})
	return err
}
