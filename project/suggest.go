package project

import (
	"strings"
	"unicode/utf8"
)

// suggest is the name in known that word was probably meant to be, or "".
func suggest(word string, known []string) string {
	if word == "" || len(word) > 64 {
		return ""
	}
	best, bestDistance := "", 1+max(1, utf8.RuneCountInString(word)/3)
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best != "" {
		return best
	}
	for _, k := range known { // 3.11 → python3.11, node18 → nodejs18
		if len(word) >= 2 && (strings.HasSuffix(k, word) || strings.HasPrefix(k, word)) {
			return k
		}
	}
	return ""
}

// oneOf is the next step for a name out of a small set.
func oneOf(word string, known []string) string {
	if len(known) == 0 {
		return "there is none to choose from"
	}
	list := known
	more := ""
	if len(list) > 30 {
		list, more = list[:30], ", …"
	}
	s := "use one of: " + strings.Join(list, ", ") + more
	if len(known) == 1 {
		s = "use " + known[0]
	}
	if m := suggest(word, known); m != "" && len(known) > 1 {
		s = "did you mean " + m + "? " + strings.ToUpper(s[:1]) + s[1:]
	}
	return s
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours between a and b.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	prev2, prev := make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row := make([]int, len(y)+1)
		row[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev = prev, row
	}
	return prev[len(y)]
}
