package project

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// The scalars of faas.yml. Each is a spec of its own kind: how a value is
// checked, what its canonical text is, and what JSON Schema says about it.

func text(say string, most int) *spec {
	return &spec{is: aText, say: say, scalar: func(s string) (string, fault) {
		if strings.TrimSpace(s) == "" {
			return "", fault{CodeValue, "is empty", "write " + say + ", or remove the key"}
		}
		if len(s) > most {
			return "", fault{CodeValue, fmt.Sprintf("has %d bytes; at most %d are allowed", len(s), most), "make it shorter"}
		}
		return s, fault{}
	}, json: map[string]any{"type": "string", "minLength": 1, "pattern": `\S`}}
}

// anyText may be empty, as the value of a variable may.
func anyText(say string) *spec {
	return &spec{is: aText, say: say, json: map[string]any{"type": "string"}}
}

func enum(what string, choices ...string) *spec {
	return &spec{is: aText, say: "one of " + strings.Join(choices, ", "), choices: choices, scalar: func(s string) (string, fault) {
		for _, c := range choices {
			if s == c {
				return s, fault{}
			}
		}
		return "", fault{CodeUnknownName, fmt.Sprintf("unknown %s %s", what, quote(s)), oneOf(s, choices)}
	}, json: map[string]any{"enum": choices}}
}

func boolean() *spec {
	return &spec{is: aBool, say: "true or false", choices: []string{"true", "false"}, scalar: func(s string) (string, fault) {
		switch l := strings.ToLower(s); l {
		case "true", "false":
			return l, fault{}
		}
		return "", fault{CodeValue, fmt.Sprintf("%s is neither true nor false", quote(s)), "write true or false"}
	}, json: map[string]any{"type": "boolean"}}
}

var decimalInt = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

func integer(least, most int) *spec {
	say := fmt.Sprintf("a whole number from %d to %d", least, most)
	return &spec{is: aNumber, say: say, scalar: func(s string) (string, fault) {
		n, err := strconv.Atoi(s)
		if err != nil || !decimalInt.MatchString(s) {
			return "", fault{CodeValue, fmt.Sprintf("%s is not a whole number", quote(s)), "write " + say}
		}
		if n < least || n > most {
			return "", fault{CodeValue, fmt.Sprintf("%d is out of range", n), "write " + say}
		}
		return s, fault{}
	}, json: map[string]any{"type": "integer", "minimum": least, "maximum": most}}
}

var decimalNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,9})?$`)

func number(least, most float64) *spec {
	plain := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	say := "a number from " + plain(least) + " to " + plain(most)
	return &spec{is: aNumber, say: say, scalar: func(s string) (string, fault) {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || !decimalNumber.MatchString(s) {
			return "", fault{CodeValue, fmt.Sprintf("%s is not a plain number", quote(s)), "write " + say}
		}
		if f < least || f > most {
			return "", fault{CodeValue, fmt.Sprintf("%s is out of range", s), "write " + say}
		}
		return strconv.FormatFloat(f, 'f', -1, 64), fault{}
	}, json: map[string]any{"type": "number", "minimum": least, "maximum": most}}
}

const durationPattern = `^([0-9]+d)?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))*$`

func duration(example string, least, most Duration) *spec {
	say := "a duration such as " + example
	return &spec{is: aText, say: say, scalar: func(s string) (string, fault) {
		d, err := ParseDuration(s)
		switch {
		case err != nil && decimalInt.MatchString(s) && s[0] != '-':
			return "", fault{CodeValue, fmt.Sprintf("%s has no unit", quote(s)), fmt.Sprintf("write %ss or %sm", s, s)}
		case err != nil:
			return "", fault{CodeValue, err.Error(), "write " + say + "; units are ms, s, m, h, d"}
		case d < least:
			return "", fault{CodeValue, fmt.Sprintf("%s is too short", d), fmt.Sprintf("write at least %s", least)}
		case d > most:
			return "", fault{CodeValue, fmt.Sprintf("%s is too long", d), fmt.Sprintf("write at most %s", most)}
		}
		return d.String(), fault{}
	}, json: map[string]any{"type": "string", "pattern": durationPattern, "minLength": 2}}
}

func memory() *spec {
	say := "an amount of memory such as 256Mi"
	return &spec{is: aText, say: say, scalar: func(s string) (string, fault) {
		q, err := ParseMemory(s)
		if err != nil {
			if decimalInt.MatchString(s) && s[0] != '-' && s != "0" {
				return "", fault{CodeValue, fmt.Sprintf("%s has no unit", quote(s)), "write " + s + "Mi"}
			}
			next := "write " + say
			if f := memorySpelling(s); f != "" {
				next = "write " + f
			}
			return "", fault{CodeValue, err.Error(), next}
		}
		return string(q), fault{}
	}, json: map[string]any{"type": "string", "pattern": `^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)$`}}
}

var looseMemory = regexp.MustCompile(`(?i)^([0-9]+) ?([kmgt])(i?b?)$`)

// memorySpelling is what 256MB or 256mi was meant to be.
func memorySpelling(s string) string {
	m := looseMemory.FindStringSubmatch(s)
	if m == nil || strings.Trim(m[1], "0") == "" {
		return ""
	}
	return m[1] + strings.ToUpper(m[2]) + "i"
}

func cpu() *spec {
	say := `an amount of CPU such as 250m or "1"`
	return &spec{is: aText, number: true, say: say, scalar: func(s string) (string, fault) {
		q, err := ParseCPU(s)
		if err != nil {
			return "", fault{CodeValue, err.Error(), "write " + say}
		}
		return string(q), fault{}
	}, json: map[string]any{"anyOf": []any{
		map[string]any{"type": "string", "pattern": `^[0-9]+(\.[0-9]+)?m?$`},
		map[string]any{"type": "number", "exclusiveMinimum": 0},
	}}}
}

// matching is text of a form; what names it, and example shows it.
func matching(pattern, what, example string, most int) *spec {
	var re *regexp.Regexp // most files use few of the specs
	return &spec{is: aText, say: what, scalar: func(s string) (string, fault) {
		if re == nil {
			re = regexp.MustCompile(pattern)
		}
		if !re.MatchString(s) {
			return "", fault{CodeValue, fmt.Sprintf("%s is not %s", quote(s), what), "write it like " + example}
		}
		if len(s) > most {
			return "", fault{CodeValue, fmt.Sprintf("%s has %d characters; at most %d are allowed", quote(s), len(s), most), "choose a shorter one"}
		}
		return s, fault{}
	}, json: map[string]any{"type": "string", "pattern": pattern, "maxLength": most}}
}

const dns1035 = `^[a-z]([-a-z0-9]*[a-z0-9])?$`

var dns1035Label = regexp.MustCompile(dns1035)

// label is a name that becomes part of a DNS name.
func label(what string, most int) *spec {
	return &spec{is: aText, say: "a name of lower-case letters, digits and -", scalar: func(s string) (string, fault) {
		why, next := labelProblem(what, s, most)
		return s, fault{CodeName, why, next}
	}, json: map[string]any{"type": "string", "pattern": dns1035, "maxLength": most}}
}

// labelKeys is a name as a key, for JSON Schema.
func labelKeys(most int) map[string]any {
	return map[string]any{"pattern": dns1035, "maxLength": most}
}

func labelProblem(what, s string, most int) (why, next string) {
	switch {
	case s == "":
		return "the name is empty", "choose a name"
	case !dns1035Label.MatchString(s):
		next = "use lower-case letters, digits and -, a letter first"
		if d := dashed(s); d != "" {
			next += ": " + d
		}
		return fmt.Sprintf("name %s can't be part of a DNS name", quote(s)), next
	case len(s) > most:
		return fmt.Sprintf("name %s has %d characters; a %s's has at most %d", quote(s), len(s), what, most), "choose a shorter one"
	}
	return "", ""
}

// dashed turns getUser, get_user and Get.User into get-user.
func dashed(s string) string {
	var b strings.Builder
	for i, c := range s {
		switch {
		case c >= 'A' && c <= 'Z':
			if i > 0 && s[i-1] >= 'a' && s[i-1] <= 'z' {
				b.WriteByte('-')
			}
			b.WriteRune(c + 'a' - 'A')
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			b.WriteRune(c)
		case c < 0x80:
			b.WriteByte('-')
		}
	}
	d := strings.Trim(b.String(), "-")
	if !dns1035Label.MatchString(d) || len(d) > 40 {
		return ""
	}
	return d
}

// repoPath is a file or folder inside the repository.
func repoPath(say string) *spec {
	return &spec{is: aText, say: say, scalar: func(s string) (string, fault) {
		why, next := pathProblem(s)
		if why != "" {
			return "", fault{CodeValue, why, next}
		}
		return path.Clean(s), fault{}
	}, json: map[string]any{"type": "string", "minLength": 1, "pattern": `^[^/\\]`}}
}

func pathProblem(s string) (why, next string) {
	switch {
	case strings.TrimSpace(s) == "":
		return "is empty", "write a path from the repository's root"
	case strings.Contains(s, `\`):
		return fmt.Sprintf("%s has a backslash", quote(s)), "separate folders with /"
	case path.IsAbs(s):
		return fmt.Sprintf("%s starts at the machine's root", quote(s)), "write it from the repository's root, without the first /"
	case path.Clean(s) == "..", strings.HasPrefix(path.Clean(s), "../"):
		return fmt.Sprintf("%s leads out of the repository", quote(s)), "name a path inside the repository"
	case strings.ContainsAny(s, "\n\x00"):
		return fmt.Sprintf("%s is not a path", quote(s)), "write it in one line"
	}
	return "", ""
}

// glob is a pattern over paths: * within a folder, ** across folders.
func glob(say string) *spec {
	return &spec{is: aText, say: say, scalar: func(s string) (string, fault) {
		if why, next := pathProblem(s); why != "" {
			return "", fault{CodeValue, why, next}
		}
		if _, err := compileGlob(s); err != nil {
			return "", fault{CodeValue, fmt.Sprintf("%s is not a pattern: %v", quote(s), err), "use *, ** and ?"}
		}
		return s, fault{}
	}, json: map[string]any{"type": "string", "minLength": 1, "pattern": `^[^/\\]`}}
}

func list(say string, elem *spec) *spec { return &spec{is: aList, say: say, elem: elem} }

func object(say string, fields ...field) *spec { return &spec{is: aMap, say: say, fields: fields} }

func mapping(say string, key func(string) (string, string), elem *spec) *spec {
	return &spec{is: aMap, say: say, key: key, elem: elem}
}
