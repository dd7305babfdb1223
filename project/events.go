package project

import (
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // the same time zones on every machine
)

// routePath is a path of http events. As a base path it has neither
// parameters nor a wildcard, and / is the same as none.
func routePath(say string, base bool) *spec {
	pattern := `^/`
	return &spec{is: aText, say: say, scalar: func(s string) (string, fault) {
		f := func(why, next string) (string, fault) { return "", fault{CodeRoute, why, next} }
		switch {
		case s == "":
			return f("is empty", "write /")
		case s[0] != '/':
			return f(fmt.Sprintf("%s does not start with /", quote(s)), "write /"+s)
		case len(s) > 500:
			return f("the path is too long", "use at most 500 characters")
		case s == "/" && base:
			return "", fault{}
		case s == "/":
			return s, fault{}
		case strings.HasSuffix(s, "/"):
			return f(fmt.Sprintf("%s ends in /", quote(s)), "write "+strings.TrimRight(s, "/"))
		case strings.ContainsAny(s, "?#"):
			return f(fmt.Sprintf("%s has a query or fragment", quote(s)), "write the path alone")
		}
		names := map[string]bool{}
		segments := strings.Split(s[1:], "/")
		for i, seg := range segments {
			name, param := paramName(seg)
			switch {
			case seg == "":
				return f(fmt.Sprintf("%s has an empty segment", quote(s)), "write one / between segments")
			case seg == "." || seg == "..":
				return f(fmt.Sprintf("%s has the segment %s", quote(s), seg), "write the path without it")
			case base && (param || seg == "*"):
				return f(fmt.Sprintf("%s has a parameter or wildcard", quote(s)), "put it into the paths of the events")
			case seg == "*" && i == len(segments)-1:
			case strings.Contains(seg, "*"):
				return f(fmt.Sprintf("%s has a * that is not the last segment", quote(s)), "end the path in /*, or use [name] for one segment")
			case param && names[name]:
				return f(fmt.Sprintf("%s has the parameter %s twice", quote(s), name), "give each a name of its own")
			case param:
				names[name] = true
			case !plainSegment.MatchString(seg):
				next := "use letters, digits and - . _ ~ in segments, [name] for a parameter, /* at the end"
				if g := otherParam.FindStringSubmatch(seg); g != nil {
					next = "write [" + g[1] + g[2] + g[3] + "] for a parameter"
				}
				return f(fmt.Sprintf("%s has the segment %s, which is neither plain nor a parameter", quote(s), quote(seg)), next)
			}
		}
		return s, fault{}
	}, json: map[string]any{"type": "string", "pattern": pattern}}
}

var (
	plainSegment = regexp.MustCompile(`^([-A-Za-z0-9._~!$&'()+,;=@]|%[0-9A-Fa-f]{2})+$`)
	paramSegment = regexp.MustCompile(`^\[([A-Za-z_][A-Za-z0-9_]*)\]$`)
	// otherParam is how other frameworks write a parameter.
	otherParam = regexp.MustCompile(`^(?::([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\+?\}|<(?:\w+:)?([A-Za-z_]\w*)>)$`)
)

func paramName(seg string) (string, bool) {
	m := paramSegment.FindStringSubmatch(seg)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// shape is a path with its parameters' names taken out: two routes of one
// shape are the same route.
func shape(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		if _, ok := paramName(s); ok {
			segments[i] = "[]"
		}
	}
	return strings.Join(segments, "/")
}

// matches reports whether a request's path, without query, fits the route.
func (r Route) matches(path string) bool {
	want, have := strings.Split(r.Path, "/"), strings.Split(path, "/")
	for i, w := range want {
		if w == "*" && i == len(want)-1 {
			return len(have) >= i
		}
		if i >= len(have) {
			return false
		}
		if _, param := paramName(w); param {
			if have[i] == "" {
				return false
			}
			continue
		}
		if w != have[i] {
			return false
		}
	}
	return len(want) == len(have)
}

// closer reports whether r is the more exact of two routes that both match:
// at the first segment that differs, plain text wins over a parameter, and a
// parameter over a wildcard.
func (r Route) closer(o Route) bool {
	rank := func(seg string) int {
		if seg == "*" {
			return 2
		}
		if _, ok := paramName(seg); ok {
			return 1
		}
		return 0
	}
	a, b := strings.Split(r.Path, "/"), strings.Split(o.Path, "/")
	for i := 0; i < len(a) && i < len(b); i++ {
		if x, y := rank(a[i]), rank(b[i]); x != y {
			return x < y
		}
	}
	return len(a) > len(b)
}

// answers reports whether the route takes a method, in lower case.
func (r Route) answers(method string) bool {
	if len(r.Methods) == 0 {
		return true
	}
	for _, m := range r.Methods {
		if m == method {
			return true
		}
	}
	return false
}

// cronFields bound the five fields of a cron line.
var cronFields = []struct {
	name        string
	least, most int
	words       string
}{
	{"minute", 0, 59, ""},
	{"hour", 0, 23, ""},
	{"day of month", 1, 31, ""},
	{"month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"},
	{"day of week", 0, 6, "sun mon tue wed thu fri sat"},
}

var cronNicknames = map[string]string{
	"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *",
	"@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}

func cron() *spec {
	return &spec{is: aText, say: `a cron line such as "0 2 * * *"`, scalar: func(s string) (string, fault) {
		f := func(why, next string) (string, fault) { return "", fault{CodeValue, why, next} }
		if long, ok := cronNicknames[s]; ok {
			return f(s+" is not a cron line of five fields", fmt.Sprintf("write %q", long))
		}
		parts := strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == '\t' })
		if len(parts) != 5 {
			next := "write minute, hour, day of month, month, day of week"
			if len(parts) == 6 {
				next = "leave out the seconds: " + next
				if strings.Contains(parts[0], "TZ=") {
					next = "write the zone beside it: timezone: " + parts[0][strings.Index(parts[0], "=")+1:]
				}
			}
			return f(fmt.Sprintf("%s has %d fields; a cron line has five", quote(s), len(parts)), next)
		}
		for i, part := range parts {
			if why := cronProblem(i, part); why != "" {
				return f(fmt.Sprintf("%s: %s %s", cronFields[i].name, quote(part), why),
					fmt.Sprintf("write *, */n, a number from %d to %d, a range a-b or a list a,b", cronFields[i].least, cronFields[i].most))
			}
		}
		if cronNever(parts) {
			return f(quote(s)+" names a day that no year has", "choose a day that the month has")
		}
		return strings.Join(parts, " "), fault{}
	}, json: map[string]any{"type": "string", "pattern": `^[ \t]*[^ \t]+([ \t]+[^ \t]+){4}[ \t]*$`}}
}

// cronNever reports days of a month that none of the months has: 31 February.
// A day of the week makes up for it, because cron takes either.
func cronNever(parts []string) bool {
	if !strings.HasPrefix(parts[4], "*") {
		return false
	}
	least := 31 // the earliest day
	for _, item := range strings.Split(parts[2], ",") {
		first, _, _ := strings.Cut(item, "/")
		first, _, _ = strings.Cut(first, "-")
		day := 1
		if first != "*" {
			day, _ = cronValue(2, first)
		}
		least = min(least, day)
	}
	if least < 30 {
		return false
	}
	for _, item := range strings.Split(parts[3], ",") {
		span, step, _ := strings.Cut(item, "/")
		first, last, ranged := strings.Cut(span, "-")
		from, to := 1, 12
		if first != "*" {
			from, _ = cronValue(3, first)
			to = from
			if ranged {
				to, _ = cronValue(3, last)
			} else if step != "" {
				to = 12
			}
		}
		by := 1
		if step != "" {
			by, _ = strconv.Atoi(step)
		}
		for month := from; month <= to; month += by {
			days := time.Date(2024, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
			if least <= days {
				return false
			}
		}
	}
	return true
}

// cronValue is a number or a word of a field.
func cronValue(i int, s string) (int, bool) {
	field := cronFields[i]
	if len(s) == 3 && field.words != "" {
		if at := strings.Index(field.words, strings.ToLower(s)); at >= 0 && at%4 == 0 {
			return at/4 + field.least, true
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && s[0] != '+' && s[0] != '-'
}

func cronProblem(i int, part string) string {
	field := cronFields[i]
	value := func(s string) (int, bool) { return cronValue(i, s) }
	for _, item := range strings.Split(part, ",") {
		span, step, stepped := strings.Cut(item, "/")
		if stepped {
			if n, err := strconv.Atoi(step); err != nil || n < 1 || n > field.most {
				return "has a step that is not a number in range"
			}
		}
		if span == "*" {
			continue
		}
		first, last, ranged := strings.Cut(span, "-")
		a, ok := value(first)
		b := a
		if ranged && ok {
			b, ok = value(last)
		}
		switch {
		case !ok:
			return "is not understood"
		case a < field.least || b > field.most:
			return "is out of range"
		case a > b:
			return "is a range that ends before it starts"
		}
	}
	return ""
}

// every is a span that a cron line can say, because clusters keep time by cron.
func every() *spec {
	s := duration("1h", minute, day)
	span := s.scalar
	s.scalar = func(t string) (string, fault) {
		c, f := span(t)
		if f.why != "" {
			return c, f
		}
		d, _ := ParseDuration(c)
		if everyCron(d) == "" {
			return "", fault{CodeValue, fmt.Sprintf("%s does not divide the hour or the day evenly", d), "use 1m, 5m, 10m, 15m, 30m, 1h, 2h, 6h, 12h, 1d, … or write cron"}
		}
		return c, fault{}
	}
	return s
}

func everyCron(d Duration) string {
	switch {
	case d == day:
		return "0 0 * * *"
	case d == hour:
		return "0 * * * *"
	case d == minute:
		return "* * * * *"
	case d < hour && d%minute == 0 && hour%d == 0:
		return fmt.Sprintf("*/%d * * * *", d/minute)
	case d > hour && d%hour == 0 && day%d == 0:
		return fmt.Sprintf("0 */%d * * *", d/hour)
	}
	return ""
}

// Schedule is the timer as a cron line of five fields, in its Timezone.
func (t Timer) Schedule() string {
	if t.Cron != "" {
		return t.Cron
	}
	return everyCron(t.Every)
}

func timezone() *spec {
	known := map[string]bool{} // reading a zone is a read of a file
	return &spec{is: aText, say: "a time zone such as Asia/Shanghai", scalar: func(s string) (string, fault) {
		ok, seen := known[s]
		if !seen && s != "Local" && s != "" && len(s) < 64 {
			_, err := time.LoadLocation(s)
			ok = err == nil
			known[s] = ok
		}
		if ok {
			return s, fault{}
		}
		return "", fault{CodeUnknownName, "unknown time zone " + quote(s), "write an IANA name such as Asia/Shanghai or UTC"}
	}, json: map[string]any{"type": "string", "minLength": 1, "maxLength": 63}}
}

func sorted(in []string) []string {
	if in == nil {
		return nil
	}
	out := append([]string(nil), in...)
	sort.Strings(out)
	return out
}
