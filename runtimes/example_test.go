package runtimes_test

import (
	"fmt"

	"github.com/kuroko-faas/kuroko/runtimes"
)

func ExampleNodeHandler() {
	files, export, err := runtimes.NodeHandler("dist/list.handler")
	fmt.Println(files[0], export, err)
	// Output: dist/list.js handler <nil>
}
