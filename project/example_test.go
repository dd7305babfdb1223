package project_test

import (
	"errors"
	"fmt"

	"github.com/kuroko-faas/kuroko/project"
)

func Example() {
	options := project.Options{
		Environment: "test",
		Runtimes:    []project.RuntimeInfo{{Name: "nodejs18", Language: "node"}},
	}
	p, err := project.Parse([]byte(`version: 1
service: hello
provider: {runtime: nodejs18}
functions:
  hello:
    handler: index.handler
    events: [{http: {path: /hello}}]
`), options)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, u := range p.Units {
		fmt.Println(u.ServiceName, u.Runtime, u.Memory, u.Timeout, u.Functions[0].Routes[0].Path)
	}

	_, err = project.Parse([]byte("version: 1\nservice: hello\nprovider: {runtime: nodejs19}\nfuntions: {}\n"), options)
	var problems project.Problems
	if errors.As(err, &problems) {
		for _, p := range problems {
			fmt.Printf("%s\n  next: %s\n", p, p.Next)
		}
	}
	// Output:
	// hello-main nodejs18 256Mi 1m /hello
	// line 3, column 21: provider.runtime: unknown runtime "nodejs19"
	//   next: use nodejs18
	// line 4, column 1: funtions: unknown key
	//   next: did you mean functions?
}
