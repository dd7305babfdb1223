package project

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span, written in Go's syntax plus d for 24 hours. Its
// text is canonical: 90s is 1m30s, 72h is 3d.
type Duration time.Duration

// Std is d as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

func (d Duration) String() string {
	const day = 24 * time.Hour
	t := time.Duration(d)
	days := t / day
	rest := t % day
	s := rest.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	switch {
	case days == 0:
		return s
	case rest == 0:
		return fmt.Sprintf("%dd", days)
	}
	return fmt.Sprintf("%dd%s", days, s)
}

// MarshalText writes the canonical form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what [ParseDuration] reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	*d = v
	return err
}

// ParseDuration reads 500ms, 90s, 1h30m, 3d, 1d12h. Negative spans are
// refused, and so are numbers without a unit.
func ParseDuration(s string) (Duration, error) {
	bad := fmt.Errorf("%s is not a duration", quote(s))
	if s == "" || s[0] == '-' || s[0] == '+' {
		return 0, bad
	}
	var days time.Duration
	rest := s
	if n, after, ok := strings.Cut(s, "d"); ok {
		v, err := strconv.ParseUint(n, 10, 16)
		if err != nil || len(n) > 5 {
			return 0, bad
		}
		days, rest = time.Duration(v)*24*time.Hour, after
		if rest == "" {
			return Duration(days), nil
		}
	}
	if rest[0] == '-' || rest[0] == '+' || rest == "0" {
		return 0, bad
	}
	v, err := time.ParseDuration(rest)
	if err != nil || v > 100*365*24*time.Hour {
		return 0, bad
	}
	return Duration(days + v), nil
}

// Quantity is an amount of memory or CPU in Kubernetes' words, canonical:
// 1024Mi is 1Gi, 0.5 of a CPU is 500m.
type Quantity string

// Bytes is the number of bytes; 0 for a quantity that is not memory.
func (q Quantity) Bytes() int64 {
	n, _, err := parseMemory(string(q))
	if err != nil {
		return 0
	}
	return n
}

// MilliCPU is the number of thousandths of a CPU; 0 for anything else.
func (q Quantity) MilliCPU() int64 {
	n, err := parseCPU(string(q))
	if err != nil {
		return 0
	}
	return n
}

// ParseMemory reads 256Mi, 1.5Gi, 500M and gives the canonical form. A number
// without a unit is refused: nobody means 512 bytes.
func ParseMemory(s string) (Quantity, error) {
	_, q, err := parseMemory(s)
	return q, err
}

var memoryUnits = []struct {
	suffix string
	factor int64
}{
	{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10},
	{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3},
}

func parseMemory(s string) (int64, Quantity, error) {
	bad := fmt.Errorf("%s is not an amount of memory", quote(s))
	for i, u := range memoryUnits {
		num, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, ok := decimal(num, u.factor)
		if !ok || n <= 0 {
			return 0, "", bad
		}
		units := memoryUnits[:4] // binary stays binary, decimal decimal
		if i >= 4 {
			units = memoryUnits[4:]
		}
		for _, c := range units {
			if n%c.factor == 0 {
				return n, Quantity(strconv.FormatInt(n/c.factor, 10) + c.suffix), nil
			}
		}
		return 0, "", bad // a fraction of the smallest unit
	}
	return 0, "", bad
}

// ParseCPU reads 250m, 0.5, 2 and gives the canonical form.
func ParseCPU(s string) (Quantity, error) {
	n, err := parseCPU(s)
	if err != nil {
		return "", err
	}
	if n%1000 == 0 {
		return Quantity(strconv.FormatInt(n/1000, 10)), nil
	}
	return Quantity(strconv.FormatInt(n, 10) + "m"), nil
}

func parseCPU(s string) (int64, error) {
	factor := int64(1000)
	num, milli := strings.CutSuffix(s, "m")
	if milli {
		factor = 1
	}
	n, ok := decimal(num, factor)
	if !ok || n <= 0 {
		return 0, fmt.Errorf("%s is not an amount of CPU", quote(s))
	}
	return n, nil
}

// decimal is num × factor when that is whole and fits; num is digits with at
// most one point, and short enough to be cheap.
func decimal(num string, factor int64) (int64, bool) {
	if num == "" || len(num) > 20 || strings.Trim(num, "0123456789.") != "" || strings.Count(num, ".") > 1 ||
		strings.HasPrefix(num, ".") || strings.HasSuffix(num, ".") {
		return 0, false
	}
	r, ok := new(big.Rat).SetString(num)
	if !ok {
		return 0, false
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	if !r.IsInt() || !r.Num().IsInt64() {
		return 0, false
	}
	return r.Num().Int64(), true
}
