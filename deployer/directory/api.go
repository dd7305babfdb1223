package directory

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// stateDir is where objects stand as an API server would keep them. What is
// beside it is for whoever applies.
const stateDir = ".kuroko"

// api answers the requests that the Knative target makes, from files.
type api struct {
	dir, domain string
	mu          sync.Mutex
}

type object = map[string]any

// kinds are the resources that can be stored, and what they are called. The
// exported ones are the folder's manifests.
var kinds = map[string]struct {
	kind     string
	exported bool
}{
	"services": {"Service", true}, "cronjobs": {"CronJob", true}, "revisions": {"Revision", false}, "routes": {"Route", false},
	"configurations": {"Configuration", false}, "leases": {"Lease", false}, "configmaps": {"ConfigMap", false},
	"pods": {"Pod", false}, "events": {"Event", false}, "jobs": {"Job", false}, "deployments": {"Deployment", false},
	"resourcequotas": {"ResourceQuota", false}, "secrets": {"Secret", false},
}

// place is what a request is about.
type place struct {
	group, version, namespace, resource, name string
}

func parse(path string) place {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var p place
	if parts[0] == "api" && len(parts) > 1 {
		p.version, parts = parts[1], parts[2:]
	} else if len(parts) > 2 {
		p.group, p.version, parts = parts[1], parts[2], parts[3:]
	}
	if len(parts) >= 2 && parts[0] == "namespaces" {
		if len(parts) == 2 {
			p.resource, p.name = "namespaces", parts[1]
			return p
		}
		p.namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 0 {
		p.resource = parts[0]
	}
	if len(parts) > 1 {
		p.name = parts[1]
	}
	return p
}

func (p place) apiVersion() string {
	if p.group == "" {
		return p.version
	}
	return p.group + "/" + p.version
}

// answer is an API server's: a status code and an object.
type answer struct {
	code int
	body any
}

func status(code int, reason metav1.StatusReason, p place, text string) answer {
	return answer{code, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: text,
		Details: &metav1.StatusDetails{Name: p.name, Group: p.group, Kind: p.resource},
	}}
}

// RoundTrip implements http.RoundTripper.
func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	var body []byte
	if r.Body != nil {
		defer r.Body.Close()
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	a.mu.Lock()
	ans, err := a.serve(r, parse(r.URL.Path), body)
	a.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("directory: %s %s: %w", r.Method, r.URL.Path, err)
	}
	data, err := json.Marshal(ans.body)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: ans.code, Status: http.StatusText(ans.code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(data)), ContentLength: int64(len(data)), Request: r,
	}, nil
}

func (a *api) serve(r *http.Request, p place, body []byte) (answer, error) {
	if strings.HasPrefix(p.resource, "selfsubject") {
		// Whoever may write the folder may do everything in it.
		return answer{http.StatusCreated, object{
			"kind": map[string]string{"selfsubjectrulesreviews": "SelfSubjectRulesReview", "selfsubjectaccessreviews": "SelfSubjectAccessReview"}[p.resource], "apiVersion": p.apiVersion(),
			"status": object{"allowed": true, "resourceRules": []any{object{"verbs": []string{"*"}, "apiGroups": []string{"*"}, "resources": []string{"*"}}}, "nonResourceRules": []any{}, "incomplete": false},
		}}, nil
	}
	if p.resource == "namespaces" {
		return answer{http.StatusOK, object{"kind": "Namespace", "apiVersion": "v1", "metadata": object{"name": p.name}}}, nil
	}
	if _, known := kinds[p.resource]; !known || r.URL.Query().Get("watch") != "" || p.name == ".." || p.namespace == ".." {
		return status(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, p, "a folder of manifests has no "+p.resource+" to watch"), nil
	}
	dry := r.URL.Query().Get("dryRun") != ""
	switch {
	case r.Method == http.MethodGet && p.name == "":
		return a.list(p, r.URL.Query().Get("labelSelector"))
	case r.Method == http.MethodGet:
		o, err := a.get(p)
		if o == nil || err != nil {
			return status(http.StatusNotFound, metav1.StatusReasonNotFound, p, p.resource+" \""+p.name+"\" not found"), err
		}
		return answer{http.StatusOK, o}, nil
	case r.Method == http.MethodPost, r.Method == http.MethodPut:
		var o object
		if err := json.Unmarshal(body, &o); err != nil {
			return answer{}, err
		}
		return a.put(p, o, r.Method == http.MethodPost, dry)
	case r.Method == http.MethodDelete && p.name != "":
		var o metav1.DeleteOptions
		if len(body) > 0 {
			if err := json.Unmarshal(body, &o); err != nil {
				return answer{}, err
			}
		}
		return a.remove(p, o.Preconditions)
	}
	return status(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, p, "a folder of manifests can't do this"), nil
}

// meta is the object's metadata, made where there is none.
func meta(o object) object {
	m, ok := o["metadata"].(object)
	if !ok {
		m = object{}
		o["metadata"] = m
	}
	return m
}

func text(o object, key string) string { s, _ := o[key].(string); return s }

func (a *api) file(p place) string {
	return filepath.Join(a.dir, stateDir, p.namespace, p.resource, p.name+".json")
}

// get reads an object; nil: there is none.
func (a *api) get(p place) (object, error) {
	if p.resource == "routes" {
		svc, err := a.get(place{p.group, p.version, p.namespace, "services", p.name})
		if svc == nil || err != nil {
			return nil, err
		}
		return a.route(svc), nil
	}
	data, err := os.ReadFile(a.file(p))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var o object
	return o, json.Unmarshal(data, &o)
}

// all reads the objects of a resource, in one namespace or in all.
func (a *api) all(p place) ([]object, error) {
	from := p
	if p.resource == "routes" {
		from.resource = "services"
	}
	namespace := p.namespace
	if namespace == "" {
		namespace = "*"
	}
	files, err := filepath.Glob(filepath.Join(a.dir, stateDir, namespace, from.resource, "*.json"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	var all []object
	for _, f := range files {
		at := p
		at.namespace, at.name = filepath.Base(filepath.Dir(filepath.Dir(f))), strings.TrimSuffix(filepath.Base(f), ".json")
		o, err := a.get(at)
		if err != nil {
			return nil, err
		}
		if o != nil {
			all = append(all, o)
		}
	}
	return all, nil
}

func (a *api) list(p place, selector string) (answer, error) {
	want, err := labels.Parse(selector)
	if err != nil {
		return answer{}, err
	}
	all, err := a.all(p)
	if err != nil {
		return answer{}, err
	}
	items := []object{}
	for _, o := range all {
		have := labels.Set{}
		if l, ok := meta(o)["labels"].(object); ok {
			for k := range l {
				have[k] = text(l, k)
			}
		}
		if want.Matches(have) {
			items = append(items, o)
		}
	}
	return answer{http.StatusOK, object{"kind": kinds[p.resource].kind + "List", "apiVersion": p.apiVersion(), "metadata": object{"resourceVersion": "1"}, "items": items}}, nil
}

// put creates or replaces an object, under the version it was read at.
func (a *api) put(p place, o object, create, dry bool) (answer, error) {
	m := meta(o)
	if create {
		p.name = text(m, "name")
	}
	if p.name == "" || strings.ContainsAny(p.name, "/\\") {
		return status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, p, "no usable name"), nil
	}
	old, err := a.get(p)
	if err != nil {
		return answer{}, err
	}
	switch {
	case create && old != nil:
		return status(http.StatusConflict, metav1.StatusReasonAlreadyExists, p, p.resource+" \""+p.name+"\" already exists"), nil
	case !create && old == nil:
		return status(http.StatusNotFound, metav1.StatusReasonNotFound, p, p.resource+" \""+p.name+"\" not found"), nil
	case !create && text(m, "resourceVersion") != "" && text(m, "resourceVersion") != text(meta(old), "resourceVersion"):
		return status(http.StatusConflict, metav1.StatusReasonConflict, p, p.resource+" \""+p.name+"\" has been modified"), nil
	}
	o["kind"], o["apiVersion"] = kinds[p.resource].kind, p.apiVersion()
	m["name"], m["namespace"] = p.name, p.namespace
	m["resourceVersion"], m["generation"] = "1", 1
	if create {
		m["uid"], m["creationTimestamp"] = rand.Text(), time.Now().UTC().Format(time.RFC3339)
	} else {
		was := meta(old)
		n, _ := strconv.ParseInt(text(was, "resourceVersion"), 10, 64)
		m["uid"], m["creationTimestamp"], m["resourceVersion"] = was["uid"], was["creationTimestamp"], strconv.FormatInt(n+1, 10)
		generation, _ := was["generation"].(float64)
		if m["generation"] = generation; !reflect.DeepEqual(o["spec"], old["spec"]) {
			m["generation"] = generation + 1
		}
	}
	code := http.StatusOK
	if create {
		code = http.StatusCreated
	}
	if dry {
		return answer{code, o}, nil
	}
	if p.resource == "services" {
		if err := a.revise(p, o); err != nil {
			return answer{}, err
		}
	}
	if err := write(a.file(p), o); err != nil {
		return answer{}, err
	}
	return answer{code, o}, a.export(p, o)
}

// revise makes the revision that a Service describes, as Knative would. It
// counts as Ready: nobody here can know better.
func (a *api) revise(p place, svc object) error {
	spec, _ := svc["spec"].(object)
	template, ok := spec["template"].(object)
	if !ok {
		return fmt.Errorf("service %s: it has no template", p.name)
	}
	tm := meta(template)
	at := place{p.group, p.version, p.namespace, "revisions", text(tm, "name")}
	if at.name == "" || strings.ContainsAny(at.name, "/\\") {
		return fmt.Errorf("service %s: its template has no usable name", p.name)
	}
	if old, err := a.get(at); old != nil || err != nil {
		return err
	}
	l := object{"serving.knative.dev/service": p.name, "serving.knative.dev/configuration": p.name}
	if have, ok := tm["labels"].(object); ok {
		maps.Copy(l, have)
	}
	return write(a.file(at), object{
		"kind": "Revision", "apiVersion": p.apiVersion(), "spec": template["spec"],
		"metadata": object{"name": at.name, "namespace": p.namespace, "labels": l, "annotations": tm["annotations"], "uid": rand.Text(), "resourceVersion": "1", "generation": 1, "creationTimestamp": time.Now().UTC().Format(time.RFC3339)},
		"status":   object{"observedGeneration": 1, "conditions": []any{object{"type": "Ready", "status": "True"}}},
	})
}

// route is what Knative would make of the Service's shares.
func (a *api) route(svc object) object {
	m := meta(svc)
	host := text(m, "name") + "." + text(m, "namespace") + "." + a.domain
	spec, _ := svc["spec"].(object)
	traffic, _ := spec["traffic"].([]any)
	served := []any{}
	for _, t := range traffic {
		share := maps.Clone(t.(object))
		if tag := text(share, "tag"); tag != "" {
			share["url"] = "http://" + tag + "-" + host
		}
		served = append(served, share)
	}
	return object{
		"kind": "Route", "apiVersion": text(svc, "apiVersion"), "spec": object{"traffic": traffic},
		"metadata": object{"name": m["name"], "namespace": m["namespace"], "labels": m["labels"], "generation": 1, "resourceVersion": m["resourceVersion"]},
		"status":   object{"observedGeneration": 1, "url": "http://" + host, "traffic": served, "conditions": []any{object{"type": "Ready", "status": "True"}}},
	}
}

func (a *api) remove(p place, only *metav1.Preconditions) (answer, error) {
	o, err := a.get(p)
	if err != nil {
		return answer{}, err
	}
	if o == nil {
		return status(http.StatusNotFound, metav1.StatusReasonNotFound, p, p.resource+" \""+p.name+"\" not found"), nil
	}
	m := meta(o)
	if only != nil && (only.UID != nil && string(*only.UID) != text(m, "uid") || only.ResourceVersion != nil && *only.ResourceVersion != text(m, "resourceVersion")) {
		return status(http.StatusConflict, metav1.StatusReasonConflict, p, "the preconditions do not hold"), nil
	}
	if p.resource == "services" {
		revs, err := a.all(place{p.group, p.version, p.namespace, "revisions", ""})
		if err != nil {
			return answer{}, err
		}
		for _, r := range revs {
			if l, ok := meta(r)["labels"].(object); ok && text(l, "serving.knative.dev/service") == p.name {
				if err := os.Remove(a.file(place{p.group, p.version, p.namespace, "revisions", text(meta(r), "name")})); err != nil {
					return answer{}, err
				}
			}
		}
	}
	if err := os.Remove(a.file(p)); err != nil {
		return answer{}, err
	}
	return answer{http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess}}, a.export(p, nil)
}

// export writes, or with nil removes, what is to be applied: without what a
// server fills in, and only shares of real traffic, because a cluster that is
// made anew has no other revision.
func (a *api) export(p place, o object) error {
	if !kinds[p.resource].exported {
		return nil
	}
	file := filepath.Join(a.dir, p.namespace, strings.ToLower(kinds[p.resource].kind)+"-"+p.name+".yaml")
	if o == nil {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var out object
	if err := json.Unmarshal(data, &out); err != nil {
		return err
	}
	delete(out, "status")
	m := meta(out)
	for _, k := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields"} {
		delete(m, k)
	}
	if spec, ok := out["spec"].(object); ok {
		if template, ok := spec["template"].(object); ok {
			if tm, ok := template["metadata"].(object); ok {
				delete(tm, "creationTimestamp")
			}
		}
		if traffic, ok := spec["traffic"].([]any); ok {
			spec["traffic"] = slices.DeleteFunc(traffic, func(t any) bool {
				share, _ := t.(object)
				delete(share, "tag")
				percent, _ := share["percent"].(float64)
				return percent == 0
			})
		}
	}
	text, err := yaml.Marshal(out)
	if err != nil {
		return err
	}
	return replace(file, text)
}

func write(file string, o object) error {
	data, err := json.MarshalIndent(o, "", " ")
	if err != nil {
		return err
	}
	return replace(file, append(data, '\n'))
}

// replace writes a file whole or not at all.
func replace(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
