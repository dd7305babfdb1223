package project

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Schema is faas.yml as JSON Schema, draft 2020-12, for editors: made from the
// same specs that [Parse] reads with, and the names in o. It refuses nothing
// that Parse accepts. Parse refuses more: what one field says about another,
// limits, routes, names that must exist.
func Schema(o Options) ([]byte, error) {
	w := schemaWriter{defs: map[string]any{}, names: map[string]string{}}
	s := w.of(fileSpec(o), false, "file")
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "faas.yml, version 1"
	s["$defs"] = w.defs
	return json.MarshalIndent(s, "", " ")
}

// variable is what may stand for any scalar that is not read before variables
// are known.
var variable = map[string]any{"type": "string", "pattern": `\$\{(env|git):`}

// schemaWriter puts maps that occur more than once into $defs.
type schemaWriter struct {
	defs  map[string]any
	names map[string]string // JSON of a map → its name in defs
}

func (w *schemaWriter) of(s *spec, patch bool, name string) map[string]any {
	patch = patch || s.patches
	var out map[string]any
	switch {
	case s.free && s.is == aMap:
		return map[string]any{"type": "object"}
	case s.free:
		return map[string]any{}
	case s.is == aMap && s.elem != nil:
		out = map[string]any{"type": "object", "additionalProperties": nullable(w.of(s.elem, patch, name))}
		if s.keys != nil {
			out["propertyNames"] = s.keys
		}
		if s.max > 0 {
			out["maxProperties"] = s.max
		}
	case s.is == aMap:
		out = w.object(s, patch, name)
	case s.is == aList:
		out = map[string]any{"type": "array", "items": w.of(s.elem, false, name)}
		if s.min > 0 {
			out["minItems"] = s.min
		}
		if s.max > 0 {
			out["maxItems"] = s.max
		}
		if s.unique {
			out["uniqueItems"] = true
		}
	default:
		out = w.scalar(s)
	}
	if s.short == nil {
		return out
	}
	short := s.json
	switch {
	case s.is == aList:
		short = w.scalar(s.elem)
	case short == nil: // a map whose name may stand alone
		short = s.field("name").spec.json
	}
	return map[string]any{"anyOf": []any{short, out}}
}

func (w *schemaWriter) scalar(s *spec) map[string]any {
	if s.literal || len(s.json) == 1 && s.json["type"] == "string" {
		return clone(s.json)
	}
	return map[string]any{"anyOf": []any{s.json, variable}}
}

func (w *schemaWriter) object(s *spec, patch bool, name string) map[string]any {
	properties := map[string]any{}
	var required []string
	for _, f := range s.fields {
		if f.planned != "" {
			continue // refused like any key nobody knows
		}
		p := w.of(f.spec, patch, f.name)
		must := f.required && !patch
		if must {
			required = append(required, f.name)
		} else if !s.exactlyOne {
			p = nullable(p)
		}
		p = clone(p)
		p["description"] = f.doc
		properties[f.name] = p
	}
	out := map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	if required != nil {
		out["required"] = required
	}
	if s.exactlyOne {
		out["minProperties"], out["maxProperties"] = 1, 1
	}
	return w.shared(out, name)
}

// shared is a reference to out among the definitions, so that a map which
// stands in several places is written once.
func (w *schemaWriter) shared(out map[string]any, name string) map[string]any {
	if name == "file" {
		return out
	}
	key, err := json.Marshal(out)
	if err != nil {
		return out
	}
	id, ok := w.names[string(key)]
	if !ok {
		id = name
		for i := 2; w.defs[id] != nil; i++ {
			id = fmt.Sprintf("%s-%d", name, i)
		}
		w.names[string(key)], w.defs[id] = id, out
	}
	return map[string]any{"$ref": "#/$defs/" + id}
}

// nullable lets null stand for nothing, or for taking away.
func nullable(s map[string]any) map[string]any {
	null := map[string]any{"type": "null"}
	if list, ok := s["anyOf"].([]any); ok && len(s) == 1 {
		return map[string]any{"anyOf": append(slices.Clone(list), null)}
	}
	return map[string]any{"anyOf": []any{s, null}}
}

func clone(m map[string]any) map[string]any {
	out := make(map[string]any, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	return out
}
