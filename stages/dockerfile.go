package stages

import (
	"context"

	"github.com/kuroko-faas/kuroko/builder"
)

// argBase is the build argument with the runtime's base image, so that a
// Dockerfile can stand on it without naming the platform's registry:
//
//	ARG FAAS_BASE
//	FROM $FAAS_BASE
const argBase = "FAAS_BASE"

// onTop makes function images from Dockerfiles: one engine carries the
// instructions out, then the adapter, the entry point, the working directory
// and the user come on top as they do for every other image. So the
// developer's Dockerfile has to know no contract but two: the code is under
// /app, and the language's program is where the runtime's base has it.
type onTop struct {
	instructions builder.Engine
	layers       builder.Engine
}

var _ builder.Engine = onTop{}

// Build implements [builder.Engine]. Nothing is tagged with the request's key
// before the whole image is there.
func (e onTop) Build(ctx context.Context, req builder.Request) (builder.Image, error) {
	built, err := e.instructions.Build(ctx, builder.Request{
		Name: req.Name, Key: req.Key, Repository: req.Repository, Code: req.Code, Dockerfile: req.Dockerfile,
	})
	if err != nil {
		return built, err
	}
	// The instructions have put the code there. A server without adapter keeps
	// their entry point; only the user is held to be nobody special.
	image, err := e.layers.Build(ctx, builder.Request{
		Name: req.Name, Key: req.Key, Repository: req.Repository, Base: built.Ref,
		Layers: req.Layers, Config: req.Config, Origin: req.Origin,
	})
	image.Engine, image.Sandbox = built.Engine, built.Sandbox
	image.Requests += built.Requests
	image.Uploaded += built.Uploaded
	// What the instructions made is below ours; the table shows whether it was
	// sent, which the layer engine can't know.
	sent := map[string]builder.Layer{}
	for _, l := range built.Layers {
		sent[l.Digest] = l
	}
	for i, l := range image.Layers {
		if b, ok := sent[l.Digest]; ok && l.Title == "base" {
			image.Layers[i] = b
		}
	}
	return image, err
}
