// Command skips reads what `go test -json` writes, prints what `go test` would,
// and in the end how many tests were skipped, by reason.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := report(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(1)
	}
}

// event is a line of go test -json; see go doc test2json.
type event struct {
	Action, Package, Test, Output string
}

// test is one of a package; its own results have no name.
type test struct{ pkg, name string }

// skipped are tests of a package with the same reason.
type skipped struct{ pkg, reason string }

// report reads events until in ends. Lines that are none are passed on.
func report(in io.Reader, out io.Writer) error {
	said := map[test][]string{}
	skips := map[skipped]int{}
	all := 0
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(out, line)
				e.Action = ""
			}
			at := test{e.Package, e.Test}
			switch e.Action {
			case "build-output":
				fmt.Fprint(out, e.Output)
			case "output":
				said[at] = append(said[at], e.Output)
			case "skip":
				if e.Test != "" {
					all++
					skips[skipped{e.Package, reason(said[at])}]++
					delete(said, at)
					break
				}
				fallthrough // a package without tests
			case "pass":
				if e.Test == "" {
					fmt.Fprint(out, last(said[at]))
				}
				delete(said, at)
			case "fail":
				fmt.Fprint(out, strings.Join(said[at], ""))
				delete(said, at)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	// What began and did not end: the process died.
	for _, at := range slices.SortedFunc(maps.Keys(said), func(a, b test) int { return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.name, b.name)) }) {
		fmt.Fprint(out, strings.Join(said[at], ""))
	}
	if all == 0 {
		return nil
	}
	fmt.Fprintf(out, "skipped: %d tests, by reason:\n", all)
	for _, s := range slices.SortedFunc(maps.Keys(skips), func(a, b skipped) int { return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.reason, b.reason)) }) {
		fmt.Fprintf(out, "%5d  %s: %s\n", skips[s], s.pkg, s.reason)
	}
	return nil
}

// last is a package's result, which comes after what its tests printed.
func last(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

var place = regexp.MustCompile(`^\s*\S+\.go:\d+: `)

// reason is what t.Skip was told.
func reason(lines []string) string {
	for _, l := range slices.Backward(lines) {
		if place.MatchString(l) {
			return strings.TrimSpace(place.ReplaceAllString(l, ""))
		}
	}
	return "without a reason"
}
