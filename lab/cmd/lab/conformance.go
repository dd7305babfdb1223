package main

import (
	"context"
	"errors"
)

func (p program) conformance(ctx context.Context, args []string) (int, error) {
	return 0, errors.New("not yet")
}
