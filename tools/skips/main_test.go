package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const in = `{"Action":"build-output","ImportPath":"x/b","Output":"b/b.go:1:1: a mistake\n"}
{"Action":"run","Package":"x/a","Test":"TestA"}
{"Action":"output","Package":"x/a","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"x/a","Test":"TestA","Output":"    a_test.go:7: fine\n"}
{"Action":"pass","Package":"x/a","Test":"TestA","Elapsed":0}
{"Action":"output","Package":"x/a","Test":"TestS/root","Output":"    a_test.go:9: needs: namespaces\n"}
{"Action":"output","Package":"x/a","Test":"TestS/root","Output":"--- SKIP: TestS/root (0.00s)\n"}
{"Action":"skip","Package":"x/a","Test":"TestS/root","Elapsed":0}
{"Action":"output","Package":"x/a","Test":"TestT","Output":"    a_test.go:9: needs: namespaces\n"}
{"Action":"skip","Package":"x/a","Test":"TestT","Elapsed":0}
{"Action":"skip","Package":"x/a","Test":"TestU","Elapsed":0}
{"Action":"output","Package":"x/a","Output":"PASS\n"}
{"Action":"output","Package":"x/a","Output":"ok  \tx/a\t0.1s\n"}
{"Action":"pass","Package":"x/a","Elapsed":0.1}
{"Action":"output","Package":"x/c","Output":"?   \tx/c\t[no test files]\n"}
{"Action":"skip","Package":"x/c","Elapsed":0}
{"Action":"output","Package":"x/d","Test":"TestD","Output":"    d_test.go:3: wrong\n"}
{"Action":"output","Package":"x/d","Test":"TestD","Output":"--- FAIL: TestD (0.00s)\n"}
{"Action":"fail","Package":"x/d","Test":"TestD","Elapsed":0}
{"Action":"output","Package":"x/d","Output":"FAIL\tx/d\t0.1s\n"}
{"Action":"fail","Package":"x/d","Elapsed":0.1}
go: not an event
{"Action":"output","Package":"x/e","Test":"TestE","Output":"panic: died\n"}
`
	const want = `b/b.go:1:1: a mistake
ok  	x/a	0.1s
?   	x/c	[no test files]
    d_test.go:3: wrong
--- FAIL: TestD (0.00s)
FAIL	x/d	0.1s
go: not an event
panic: died
skipped: 3 tests, by reason:
    2  x/a: needs: namespaces
    1  x/a: without a reason
`
	var out strings.Builder
	if err := report(strings.NewReader(in), &out); err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
	out.Reset()
	if err := report(strings.NewReader(`{"Action":"output","Package":"x/a","Output":"ok\n"}`+"\n"+`{"Action":"pass","Package":"x/a"}`+"\n"), &out); err != nil || out.String() != "ok\n" {
		t.Errorf("%v %q", err, out.String())
	}
}
