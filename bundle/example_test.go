package bundle_test

import (
	"context"
	"fmt"
	"time"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/oss"
)

// The first job of a pipeline chooses and opens the bundle, and hands it on.
func Example() {
	first := func(ctx context.Context, dir string) error {
		p, err := bundle.LoadPlatform("/usr/local/share/kuroko")
		if err != nil {
			return err
		}
		store, err := oss.NewHTTP(p.URL, oss.HTTPOptions{})
		if err != nil {
			return err
		}
		c := &bundle.Client{Store: oss.RetryReader(store, oss.RetryOptions{}), Root: p.Root, Seed: p.Dir}
		choice, err := c.Resolve(ctx, bundle.Query{
			Org: p.Org, Channel: p.Channel, ProjectID: 42, ProjectPath: "fe/order", PipelineID: 7, At: time.Now(), Handed: dir,
		})
		if err != nil {
			return err
		}
		b, err := c.Open(ctx, choice)
		if err != nil {
			return err
		}
		defer b.Close()
		for _, w := range b.Warnings {
			fmt.Println("warning:", w)
		}
		fmt.Println(b.Digest, b.Choice.Why)
		return b.HandOn(dir)
	}
	_ = first
	// Output:
}

// A rollout starts with some of the projects and is raised by appending.
func ExampleNext() {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const manifest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	c := bundle.Channel{Org: "acme", Name: "stable", Root: 1}
	for i, percent := range []int{5, 25, 100} {
		var err error
		c, err = bundle.Next(c, bundle.Entry{Manifest: manifest, Version: "1.4.0", Percent: percent}, bundle.Terms{
			Now: now.Add(time.Duration(i) * time.Hour), Lead: bundle.DefaultLead, Who: "ops", Why: "new adapter",
		})
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	for _, e := range c.Entries {
		fmt.Println(e.From.Format(time.TimeOnly), e.Percent)
	}
	// Output:
	// 14:01:00 100
	// 13:01:00 25
	// 12:01:00 5
}
