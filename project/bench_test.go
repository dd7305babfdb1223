package project

import (
	"fmt"
	"strings"
	"testing"
)

// many is a file of n functions in the shape of the page's first example.
func many(n int) []byte {
	var b strings.Builder
	b.WriteString("version: 1\nservice: {name: big, tier: core}\nprovider: {runtime: nodejs18, environment: {LOG_LEVEL: info}}\n" +
		"routes: {basePath: /big}\nfunctions:\n")
	for i := range n {
		fmt.Fprintf(&b, "  fn-%d: {handler: dist/f%d.handler, source: functions/f%d, timeout: 5s, events: [{http: {path: \"/f%d/[id]\", method: get}}]}\n", i, i, i, i)
	}
	return []byte(b.String())
}

func BenchmarkParse(b *testing.B) {
	for _, n := range []int{1, 20, 200, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			data, o := many(n), testOptions{}.options()
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := Parse(data, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What merging would multiply, if it copied: two thousand functions under five
// hundred variables that an environment changes.
func BenchmarkParseManyVariables(b *testing.B) {
	var vars strings.Builder
	for i := range 500 {
		fmt.Fprintf(&vars, "V%d: x, ", i)
	}
	patch := "environments: {prod: {provider: {environment: {" + vars.String() + "}}}}\n"
	data := []byte(strings.Replace(string(many(2000)), "{LOG_LEVEL: info}", "{"+vars.String()+"}", 1) + patch)
	o := testOptions{Environment: "prod"}.options()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(data, o); err != nil {
			b.Fatal(err)
		}
	}
}
