package knative

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strings"
	"time"

	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuroko-faas/kuroko/deployer"
)

// getLease reads the scope's Lease; nil: there is none.
func (t *Target) getLease(ctx context.Context, scope deployer.Scope) (*coordination.Lease, error) {
	name := recordName(scope)
	l, err := read(ctx, t, "read lease "+name, func(ctx context.Context) (*coordination.Lease, error) {
		return t.kube.CoordinationV1().Leases(t.namespace(scope)).Get(ctx, name, metav1.GetOptions{})
	})
	if errors.Is(err, deployer.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return l, owned(scope, "lease", name, l.Labels)
}

// Head implements [deployer.Records].
func (t *Target) Head(ctx context.Context, scope deployer.Scope) (deployer.Head, error) {
	l, err := t.getLease(ctx, scope)
	if err != nil || l == nil {
		return deployer.Head{}, err
	}
	return headOf(l)
}

// headOf reads the record on a Lease.
func headOf(l *coordination.Lease) (deployer.Head, error) {
	var h deployer.Head
	if err := json.Unmarshal([]byte(l.Annotations[AnnotationHead]), &h); err != nil {
		return deployer.Head{}, fmt.Errorf("knative: lease %s: annotation %s: %w", l.Name, AnnotationHead, err)
	}
	h.Version = l.ResourceVersion
	return h, nil
}

// setHead writes the record on a Lease, and repeats for kubectl what a Lease
// has fields for.
func setHead(l *coordination.Lease, h deployer.Head) error {
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("knative: write head: %w", err)
	}
	if l.Annotations == nil {
		l.Annotations = map[string]string{}
	}
	l.Annotations[AnnotationHead] = string(b)
	l.Annotations[AnnotationLive] = h.Live
	l.Annotations[AnnotationWrite] = rand.Text()
	l.Spec = coordination.LeaseSpec{}
	if h.Holder != "" {
		l.Spec.HolderIdentity = &h.Holder
	}
	if h.LeaseFor > 0 {
		secs := int32(math.Ceil(min(h.LeaseFor.Seconds(), math.MaxInt32)))
		l.Spec.LeaseDurationSeconds = &secs
	}
	if !h.Renewed.IsZero() {
		l.Spec.RenewTime = &metav1.MicroTime{Time: h.Renewed}
	}
	turns := int32(min(h.Epoch, math.MaxInt32))
	l.Spec.LeaseTransitions = &turns
	return nil
}

// lastLease is the scope's Lease as this process wrote it, where it is still
// of that version as far as anybody here knows; else as the cluster has it,
// nil: there is none. The cluster decides about the version when it is
// written.
func (t *Target) lastLease(ctx context.Context, scope deployer.Scope, version string) (*coordination.Lease, error) {
	t.mu.Lock()
	l := t.leases[scope]
	t.mu.Unlock()
	if l != nil && l.ResourceVersion == version {
		return l, nil
	}
	return t.getLease(ctx, scope)
}

// keepLease remembers what was written as long as somebody here holds it.
func (t *Target) keepLease(scope deployer.Scope, l *coordination.Lease) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.Spec.HolderIdentity == nil {
		delete(t.leases, scope)
		return
	}
	t.leases[scope] = l
}

// SwapHead implements [deployer.Records].
func (t *Target) SwapHead(ctx context.Context, scope deployer.Scope, h deployer.Head) (deployer.Head, error) {
	l, err := t.lastLease(ctx, scope, h.Version)
	if err != nil {
		return deployer.Head{}, err
	}
	if l == nil != (h.Version == "") || l != nil && l.ResourceVersion != h.Version {
		return deployer.Head{}, deployer.ErrConflict
	}
	leases := t.kube.CoordinationV1().Leases(t.namespace(scope))
	if l != nil {
		l = l.DeepCopy()
	} else {
		l = &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Name: recordName(scope)}}
	}
	if l.Labels == nil {
		l.Labels = map[string]string{}
	}
	maps.Copy(l.Labels, scopeLabels(scope))
	if err := setHead(l, h); err != nil {
		return deployer.Head{}, err
	}
	got, err := once(ctx, t, "write lease "+l.Name, func(ctx context.Context) (*coordination.Lease, error) {
		if h.Version == "" {
			return leases.Create(ctx, l, metav1.CreateOptions{})
		}
		return leases.Update(ctx, l, metav1.UpdateOptions{})
	})
	switch {
	case errors.Is(err, deployer.ErrExists), errors.Is(err, deployer.ErrNotFound):
		return deployer.Head{}, deployer.ErrConflict
	case err != nil:
		return deployer.Head{}, err
	}
	t.keepLease(scope, got)
	return headOf(got)
}

// fence refuses a writer whose lease somebody else has taken.
func (t *Target) fence(ctx context.Context, f deployer.Fence) error {
	h, err := t.Head(ctx, f.Scope)
	if err != nil {
		return err
	}
	if f.Epoch == 0 || f.Epoch < h.Epoch {
		return fmt.Errorf("knative: epoch %d, the lease is at %d (%s): %w", f.Epoch, h.Epoch, h.Holder, deployer.ErrFenced)
	}
	return nil
}

// maxRelease bounds a record, compressed and unpacked, in bytes. etcd takes
// 1.5 MB; many records live beside each other.
const (
	maxRelease      = 64 << 10
	maxReleasePlain = 8 << 20
	releaseKey      = "release.json.gz"
	indexKey        = "index.json"
)

func packRelease(r deployer.Release) ([]byte, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("knative: release %s: %w", r.ID, err)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err = w.Write(plain)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("knative: release %s: %w", r.ID, err)
	}
	return b.Bytes(), nil
}

// index is what stands in a ConfigMap that is too small for its record.
type index struct {
	Release string      `json:"release"`
	Units   []indexUnit `json:"units"`
}

type indexUnit struct {
	Unit     string `json:"unit"`
	Revision string `json:"revision"`
	Image    string `json:"image"`
}

func indexOf(r deployer.Release) ([]byte, error) {
	i := index{Release: r.ID}
	for _, u := range r.Units {
		i.Units = append(i.Units, indexUnit{u.Unit, u.Revision, u.Image})
	}
	return json.Marshal(i)
}

func unpackRelease(b []byte) (deployer.Release, error) {
	var r deployer.Release
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return r, err
	}
	plain, err := io.ReadAll(io.LimitReader(z, maxReleasePlain+1))
	if err != nil {
		return r, err
	}
	if len(plain) > maxReleasePlain {
		return r, fmt.Errorf("larger than %d bytes", maxReleasePlain)
	}
	return r, json.Unmarshal(plain, &r)
}

// CreateRelease implements [deployer.Records].
func (t *Target) CreateRelease(ctx context.Context, f deployer.Fence, r deployer.Release) error {
	b, err := packRelease(r)
	if err != nil {
		return err
	}
	if err := t.fence(ctx, f); err != nil {
		return err
	}
	var full kept
	if t.cfg.Artefacts {
		// Before its tags: an id that is taken has its own.
		_, err := read(ctx, t, "read release "+r.ID, func(ctx context.Context) (*metav1.PartialObjectMetadata, error) {
			return t.meta.Resource(configMapResource).Namespace(t.namespace(f.Scope)).Get(ctx, releaseName(f.Scope, r.ID), metav1.GetOptions{})
		})
		if err == nil {
			return fmt.Errorf("knative: write release %s: %w", r.ID, deployer.ErrExists)
		}
		if !errors.Is(err, deployer.ErrNotFound) {
			return err
		}
		if full = t.keepInRegistry(ctx, f.Scope, r, b); full.note != "" && t.cfg.Notice != nil {
			t.cfg.Notice(full.note)
		}
	}
	data := map[string][]byte{releaseKey: b}
	if len(b) > maxRelease {
		if full.record == "" {
			t.dropTags(context.WithoutCancel(ctx), full.tags)
			return fmt.Errorf("knative: release %s: its record is %d bytes compressed, more than the %d that a ConfigMap is given, and the registry does not hold it; use fewer units or a smaller environment", r.ID, len(b), maxRelease)
		}
		small, err := indexOf(r)
		if err != nil {
			return fmt.Errorf("knative: release %s: %w", r.ID, err)
		}
		data = map[string][]byte{indexKey: small}
	}
	immutable := true
	m := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: releaseName(f.Scope, r.ID), Labels: scopeLabels(f.Scope),
			Annotations: map[string]string{group + "release": r.ID, group + "commit": r.Commit, group + "created-by": r.CreatedBy, group + "at": r.Created.UTC().Format(time.RFC3339)},
		},
		Immutable:  &immutable,
		BinaryData: data,
	}
	for k, v := range map[string]string{annotationArtefact: full.record, annotationTags: strings.Join(full.tags, " "), annotationNote: full.note} {
		if v != "" {
			m.Annotations[k] = v
		}
	}
	m.Labels[LabelRecord] = "release"
	_, err = once(ctx, t, "write release "+r.ID, func(ctx context.Context) (*corev1.ConfigMap, error) {
		return t.kube.CoreV1().ConfigMaps(t.namespace(f.Scope)).Create(ctx, m, metav1.CreateOptions{})
	})
	if len(deployer.Failures(err)) > 0 {
		// A plain no: nobody would know of the tags. What may have been written
		// after all keeps them; a sweep forgets it with its tags.
		t.dropTags(context.WithoutCancel(ctx), full.tags)
	}
	return err
}

// Release implements [deployer.Records].
func (t *Target) Release(ctx context.Context, scope deployer.Scope, id string) (deployer.Release, error) {
	m, err := read(ctx, t, "read release "+id, func(ctx context.Context) (*corev1.ConfigMap, error) {
		return t.kube.CoreV1().ConfigMaps(t.namespace(scope)).Get(ctx, releaseName(scope, id), metav1.GetOptions{})
	})
	if err != nil {
		return deployer.Release{}, err
	}
	if err := owned(scope, "release", id, m.Labels); err != nil {
		return deployer.Release{}, err
	}
	packed := m.BinaryData[releaseKey]
	if packed == nil && m.Annotations[annotationArtefact] != "" {
		if packed, err = t.pullRecord(ctx, m.Annotations[annotationArtefact]); err != nil {
			return deployer.Release{}, fmt.Errorf("knative: release %s: its record in the registry, %s: %w", id, m.Annotations[annotationArtefact], err)
		}
	}
	r, err := unpackRelease(packed)
	if err != nil {
		return deployer.Release{}, fmt.Errorf("knative: release %s: config map %s: %w", id, m.Name, err)
	}
	return r, nil
}

// Releases implements [deployer.Records].
func (t *Target) Releases(ctx context.Context, scope deployer.Scope) ([]string, error) {
	want := scopeLabels(scope)
	want[LabelRecord] = "release"
	all, err := read(ctx, t, "list releases of "+scope.String(), func(ctx context.Context) (*corev1.ConfigMapList, error) {
		return t.kube.CoreV1().ConfigMaps(t.namespace(scope)).List(ctx, metav1.ListOptions{LabelSelector: selector(want)})
	})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, m := range all.Items {
		ids = append(ids, m.Annotations[group+"release"])
	}
	return ids, nil
}

// RemoveRelease implements [deployer.Records].
func (t *Target) RemoveRelease(ctx context.Context, f deployer.Fence, id string) error {
	if err := t.fence(ctx, f); err != nil {
		return err
	}
	records := t.kube.CoreV1().ConfigMaps(t.namespace(f.Scope))
	m, err := read(ctx, t, "read release "+id, func(ctx context.Context) (*corev1.ConfigMap, error) {
		return records.Get(ctx, releaseName(f.Scope, id), metav1.GetOptions{})
	})
	if err == nil {
		err = owned(f.Scope, "release", id, m.Labels)
	}
	if err == nil {
		_, err = read(ctx, t, "remove release "+id, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, records.Delete(ctx, m.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &m.UID}})
		})
	}
	if errors.Is(err, deployer.ErrNotFound) || errors.Is(err, deployer.ErrConflict) {
		return nil // gone, or another one by now
	}
	if err == nil && t.cfg.Artefacts {
		t.dropTags(ctx, strings.Fields(m.Annotations[annotationTags]))
	}
	return err
}
