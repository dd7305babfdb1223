package pip

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	version "github.com/aquasecurity/go-pep440-version"
	"golang.org/x/sync/errgroup"

	"github.com/kuroko-faas/kuroko/builder/fetch"
	"github.com/kuroko-faas/kuroko/builder/layer"
)

// parallel is how many wheels are fetched at once.
const parallel = 8

// Write fetches the plan's wheels and adds them to w below prefix
// (/usr/local): package after package by name, files sorted within each.
// Nothing is compiled to byte code, so that equal plans give equal layers.
//
// Errors: [*fetch.Error], [*fetch.PackageError], [*OutOfStepError],
// [*NeedsInstallerError] with every package that pip has to install, w's own
// errors, ctx's cause.
func (f *Fetcher) Write(ctx context.Context, w *layer.Writer, prefix string, plan Plan) error {
	limits := f.limits()
	spools := make([]*layer.Spool, len(plan.Packages))
	defer func() {
		for _, s := range spools {
			if s != nil {
				s.Close()
			}
		}
	}()
	foreign := make([]error, len(plan.Packages))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, r := range plan.Packages {
		group.Go(func() (err error) {
			spools[i], err = f.wheel(gctx, r, plan.platform)
			if errors.Is(err, ErrNeedsInstaller) {
				foreign[i], err = err, nil // all of them are named
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	var dists []*dist
	var total int64
	for i, s := range spools {
		r := plan.Packages[i]
		if s == nil {
			continue
		}
		d, err := open(r, s.Section(0, s.Len()), plan.platform, prefix, limits)
		if errors.Is(err, ErrNeedsInstaller) {
			foreign[i] = err
			continue
		}
		if err != nil {
			return &fetch.PackageError{Package: r.ID(), Host: hostOf(f.Index), Err: err}
		}
		if total += d.size; total > limits.Total {
			return &fetch.PackageError{Package: r.ID(), Host: hostOf(f.Index), Err: fmt.Errorf("%w: all wheels unpack to more than %d bytes", fetch.ErrHostile, limits.Total)}
		}
		dists = append(dists, d)
	}
	if err := together(foreign); err != nil {
		return err
	}
	if problems := plan.missing(dists); len(problems) > 0 {
		return &OutOfStepError{problems}
	}
	have := map[string]string{}
	for _, d := range dists {
		for _, file := range d.files {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := add(w, d, file, have); err != nil {
				return err
			}
		}
	}
	return nil
}

func together(foreign []error) error {
	var all []string
	for _, err := range foreign {
		var n *NeedsInstallerError
		if errors.As(err, &n) {
			all = append(all, n.Reasons...)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &NeedsInstallerError{Reasons: all}
}

// add writes one file. A file that two packages bring alike is written once.
func add(w *layer.Writer, d *dist, i installed, have map[string]string) error {
	body, size, err := i.open()
	if err != nil {
		return &fetch.PackageError{Package: d.requirement.ID(), Host: "its wheel", Err: err}
	}
	defer body.Close()
	h := sha256.New()
	if found, _ := w.Has(i.place); found {
		if _, err := io.Copy(h, body); err != nil {
			return &fetch.PackageError{Package: d.requirement.ID(), Host: "its wheel", Err: err}
		}
		if have[i.place] == hex.EncodeToString(h.Sum(nil)) {
			return nil
		}
		return needs("%s overwrites /%s of another package", d.requirement.ID(), i.place)
	}
	e := layer.Entry{Name: i.place, Mode: 0o644, Size: size, Body: io.TeeReader(body, h)}
	if i.exec {
		e.Mode = 0o755
	}
	if err := w.Add(e); err != nil {
		if errors.Is(err, layer.ErrDuplicate) || errors.Is(err, layer.ErrNotFolder) {
			return needs("%s: /%s is a folder in one package and a file in another", d.requirement.ID(), i.place)
		}
		return fmt.Errorf("%s: %w", d.requirement.ID(), err)
	}
	have[i.place] = hex.EncodeToString(h.Sum(nil))
	return nil
}

var required = regexp.MustCompile(`^([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*(?:\((.*)\)|(.*))$`)

// missing says which requirements of the packages the file does not meet. pip
// refuses these too: with hashes, every package has to be pinned.
func (p Plan) missing(dists []*dist) []string {
	versions := map[string]string{}
	for _, r := range p.Packages {
		versions[r.Name] = r.Version
	}
	var problems []string
	for _, d := range dists {
		for _, line := range d.requires {
			spec, condition, conditional := strings.Cut(line, ";")
			m := required.FindStringSubmatch(strings.TrimSpace(spec))
			if m == nil || strings.Contains(spec, "@") {
				continue // an address: nothing to compare
			}
			if conditional {
				c, err := parseMarker(condition)
				if err != nil || !p.platform.holds(c, append([]string{""}, d.requirement.extras...)).certain {
					continue
				}
			}
			name, wanted := normalize(m[1]), strings.TrimSpace(m[2]+m[3])
			got, ok := versions[name]
			switch {
			case !ok:
				problems = append(problems, fmt.Sprintf("%s requires %s, which is not pinned", d.requirement.ID(), name))
			case wanted != "" && !satisfies(got, wanted):
				problems = append(problems, fmt.Sprintf("%s requires %s%s, but %s is pinned", d.requirement.ID(), name, wanted, got))
			}
		}
	}
	slices.Sort(problems)
	return slices.Compact(problems)
}

func satisfies(got, wanted string) bool {
	s, err := version.NewSpecifiers(wanted, version.WithPreRelease(true))
	if err != nil {
		return true // an old form that only pip reads
	}
	v, err := version.Parse(got)
	return err != nil || s.Check(v)
}
