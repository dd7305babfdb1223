package debian_test

import (
	"fmt"

	"github.com/kuroko-faas/kuroko/builder/debian"
)

func ExampleParseRecipe() {
	_, err := debian.ParseRecipe([]byte(`
name: base/nodejs18
kind: base
packages: [nodejs]
expect: {package: nodejs, program: usr/bin/node, major: "20"}
abi: node108-glibc{version:libc6}
`))
	fmt.Println(err)
	// Output: expect.major: 20 is not the version in the name base/nodejs18
}
