package bundle

import (
	"errors"
	"slices"
	"testing"
)

// Files that a recipe makes are part of the bundle; they see what the bundle
// has, and never replace a file of the checkout.
func TestBuildGenerates(t *testing.T) {
	r := recipe("1.0.0")
	plain, err := Build(t.Context(), checkout(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.Generate = func(m Meta, files []string) (map[string][]byte, error) {
		if m.Version != "1.0.0" || m.Runtimes["nodejs18"].Base == "" || !slices.Contains(files, "stages/build.yml") {
			t.Errorf("made of %+v, %v", m, files)
		}
		return map[string][]byte{"schema/faas-v1.json": []byte("{}")}, nil
	}
	p, err := Build(t.Context(), checkout(), r)
	if err != nil || p.Files != plain.Files+1 || p.Digest == plain.Digest {
		t.Errorf("%v, %d files after %d", err, p.Files, plain.Files)
	}
	if _, err := Build(t.Context(), checkout("platform/schema/faas-v1.json", "mine"), r); !errors.Is(err, ErrContent) {
		t.Errorf("a file that is made and there gives %v", err)
	}
	broken := errors.New("broken")
	r.Generate = func(Meta, []string) (map[string][]byte, error) { return nil, broken }
	if _, err := Build(t.Context(), checkout(), r); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
