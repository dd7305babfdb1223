package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/kuroko-faas/kuroko/builder/registry"
)

func ExampleSession_Head() {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	repo, err := name.NewRepository(strings.TrimPrefix(srv.URL, "http://") + "/team/app")
	if err != nil {
		fmt.Println(err)
		return
	}
	s := registry.New(registry.Options{}).Session()
	_, err = s.Head(context.Background(), repo.Tag("v1"), false)
	fmt.Println(errors.Is(err, registry.ErrNotFound), s.Requests())
	// Output: true 1
}
