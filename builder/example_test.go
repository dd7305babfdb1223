package builder_test

import (
	"fmt"

	"github.com/kuroko-faas/kuroko/builder"
)

// Parts are hashed with their lengths, so moving a byte from one to the next
// gives another key.
func ExampleKey() {
	fmt.Println(builder.Key("ab", "c") == builder.Key("a", "bc"))
	fmt.Println(len(builder.Key(builder.Layout, "sha256:base", "sha256:code")))
	// Output:
	// false
	// 64
}
