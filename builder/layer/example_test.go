package layer_test

import (
	"context"
	"fmt"
	"testing/fstest"

	"github.com/kuroko-faas/kuroko/builder/layer"
)

func ExampleFromTree() {
	l, err := layer.FromTree(context.Background(), "", layer.Gzip, layer.Tree{
		FS:     fstest.MapFS{"index.js": {Data: []byte("exports.handler = () => 'hello'\n"), Mode: 0o600}},
		Prefix: "/app",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	fmt.Println(l.Info().MediaType)
	fmt.Println(l.Info().DiffID)
	// Output:
	// application/vnd.oci.image.layer.v1.tar+gzip
	// sha256:a8d68ab17dd72d9df8eb0cd496b93d92f558ed3465a2305f5fa09260c6138cc7
}
