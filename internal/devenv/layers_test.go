package devenv

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/debian"
)

// A built-in layer of an older base is none: whoever names it would get an
// error about images that nobody asked for.
func TestLayersOfAnotherBase(t *testing.T) {
	cache := t.TempDir()
	images := debian.Builder{Cache: cache}
	if made, err := madeFor(images, "layer/ffmpeg/python3.11", "base/python3.11@sha256:a"); made || err != nil {
		t.Errorf("nothing made: %v, %v", made, err)
	}
	img, err := mutate.Config(empty.Image, v1.Config{Labels: map[string]string{builder.LabelLayerBase: "sha256:a"}})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "images", "layer", "ffmpeg", "python3.11")
	info, err := json.Marshal(debian.Image{Name: "layer/ffmpeg/python3.11", Digest: digest.String()})
	if err != nil {
		t.Fatal(err)
	}
	at, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = errors.Join(at.AppendImage(img), os.WriteFile(filepath.Join(dir, "kuroko.json"), info, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	for base, want := range map[string]bool{"base/python3.11@sha256:a": true, "base/python3.11@sha256:b": false} {
		if made, err := madeFor(images, "layer/ffmpeg/python3.11", base); made != want || err != nil {
			t.Errorf("for %s: %v, %v", base, made, err)
		}
	}
}
