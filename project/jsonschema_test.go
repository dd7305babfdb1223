package project

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// beyond are the cases that only the parser can refuse, and why no schema can.
var beyond = map[string]string{
	"aggregation_independent":            "one field about another",
	"aggregation_overlap":                "functions about each other",
	"aggregation_runtimes_mixed":         "functions about each other",
	"cron_never":                         "the calendar",
	"environment_branch_and_tag":         "one field about another",
	"environment_patch_incomplete":       "a patch completes what is elsewhere",
	"environment_unknown":                "the job's environment",
	"handler_forms":                      "the runtime's language, in another field",
	"job_conflicts":                      "one field about another",
	"merge_function_only_in_environment": "names that must exist",
	"merge_null_required":                "what merging leaves",
	"rollout_verify_owner":               "routes",
	"routes_basepath_variants":           "a path without parameters",
	"routes_conflict":                    "routes",
	"routes_param_wildcard":              "routes",
	"scale_conflicts":                    "one number about another",
	"source":                             "paths are resolved",
	"syntax_complex_key":                 "JSON has no such keys",
	"syntax_duplicate_everywhere":        "JSON has each key once",
	"syntax_map_key":                     "JSON has no such keys",
	"syntax_merge_bad":                   "JSON has no anchors",
	"syntax_tag":                         "JSON has no tags",
	"tier_core_min":                      "the tier",
	"tier_limits":                        "the tier",
	"tier_policy_functions":              "the tier",
	"tier_policy_strategy":               "the tier",
	"units_cant_live_together":           "functions about each other",
	"units_environment_over_provider":    "functions about each other",
	"variables_git_unknown":              "variables",
	"variables_masked":                   "the job's variables",
	"variables_unset":                    "the job's variables",
	"variables_value_checked":            "the job's variables",
	"variables_wrong_after_filling":      "the job's variables",
	"version_float":                      "how a number is written",
}

// schemas compiles each schema once.
type schemas map[string]*jsonschema.Schema

func (s schemas) of(t testing.TB, o Options) *jsonschema.Schema {
	t.Helper()
	key := fmt.Sprint(o.Clusters)
	if s[key] == nil {
		s[key] = compileSchema(t, o)
	}
	return s[key]
}

func compileSchema(t testing.TB, o Options) *jsonschema.Schema {
	t.Helper()
	data, err := Schema(o)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("faas.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("faas.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What the parser accepts, the schema accepts; what the schema refuses, the
// parser refuses; and where the parser refuses more, this test says so.
func TestSchemaAgreesWithParser(t *testing.T) {
	compiled := schemas{}
	for _, file := range cases(t) {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		c := readCase(t, file)
		root, _ := read(c.yml)
		if root == nil {
			continue // not YAML: no schema sees it
		}
		invalid := compiled.of(t, c.options).Validate(root.plain())
		_, err := Parse(c.yml, c.options)
		switch {
		case err == nil && invalid != nil:
			t.Errorf("%s: the parser accepts it, the schema does not: %v", name, invalid)
		case err != nil && invalid == nil && beyond[name] == "":
			t.Errorf("%s: the schema accepts it, the parser does not: %v", name, err)
		case beyond[name] != "" && (err == nil || invalid != nil):
			t.Errorf("%s: the schema knows as much as the parser: remove it from the list", name)
		}
	}
}

func TestSchemaIsDeterministic(t *testing.T) {
	o := testOptions{}.options()
	a, _ := Schema(o)
	b, _ := Schema(o)
	if !bytes.Equal(a, b) {
		t.Error("two schemas for the same options")
	}
	if len(a) > 100<<10 {
		t.Errorf("the schema has %d bytes", len(a))
	}
}
