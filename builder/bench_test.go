package builder_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/npm/npmtest"
	"github.com/kuroko-faas/kuroko/builder/registry/registrytest"
)

// The benchmarks build against a registry and a package registry in the same
// process, so their own work is in the numbers; requests and bytes are exact.

// benchWorld has 70 packages of 20 files, about the size of a small web
// framework's tree.
func benchWorld(b *testing.B) *world {
	w := &world{reg: registrytest.New(b), npm: npmtest.Start(b, npmtest.Generate(70, 20, 1500)...)}
	w.base = pushBase(b, w.reg, "base/nodejs18")
	return w
}

func run(b *testing.B, build func(i int) builder.Image) {
	b.Helper()
	var requests int
	var sent int64
	i := 0
	for b.Loop() {
		img := build(i)
		requests += img.Requests
		sent += img.Uploaded
		i++
	}
	b.ReportMetric(float64(requests)/float64(b.N), "requests/op")
	b.ReportMetric(float64(sent)/float64(b.N), "sent-B/op")
}

func (w *world) in(repo string, req builder.Request) builder.Request {
	r, err := name.NewRepository(w.reg.Host + "/" + repo)
	if err != nil {
		panic(err)
	}
	req.Repository = r
	return req
}

// BenchmarkCold knows nothing and finds nothing.
func BenchmarkCold(b *testing.B) {
	w := benchWorld(b)
	req := w.request(b, "k", "one")
	run(b, func(i int) builder.Image {
		return mustBuild(b, engine(b, builder.Options{}), w.in(fmt.Sprintf("cold/app%d", i), req))
	})
}

// BenchmarkUnknownMachine finds the dependency layer in the registry.
func BenchmarkUnknownMachine(b *testing.B) {
	w := benchWorld(b)
	mustBuild(b, engine(b, builder.Options{}), w.request(b, "k", "one"))
	req := w.request(b, "", "")
	run(b, func(i int) builder.Image {
		req := req
		req.Key = fmt.Sprint("k", i)
		return mustBuild(b, engine(b, builder.Options{}), req)
	})
}

// BenchmarkCodeChange is a machine that has built the image before.
func BenchmarkCodeChange(b *testing.B) {
	w := benchWorld(b)
	dir := b.TempDir()
	mustBuild(b, engine(b, builder.Options{CacheDir: dir}), w.request(b, "k", "one"))
	var reqs []builder.Request
	run(b, func(i int) builder.Image {
		b.StopTimer()
		reqs = append(reqs[:0], w.request(b, fmt.Sprint("k", i), fmt.Sprint("code ", i)))
		e := engine(b, builder.Options{CacheDir: dir})
		b.StartTimer()
		return mustBuild(b, e, reqs[0])
	})
}

// BenchmarkNoChange asks one question.
func BenchmarkNoChange(b *testing.B) {
	w := benchWorld(b)
	dir := b.TempDir()
	req := w.request(b, "k", "one")
	mustBuild(b, engine(b, builder.Options{CacheDir: dir}), req)
	run(b, func(int) builder.Image {
		img, err := engine(b, builder.Options{CacheDir: dir}).Build(context.Background(), req)
		if err != nil {
			b.Fatal(err)
		}
		return img
	})
}
