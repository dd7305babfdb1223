package main

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/bundle"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/stages"
)

// bundleCommand builds, signs and publishes bundles.
func bundleCommand(getenv func(string) string) *cli.Command {
	channel := []cli.Flag{
		&cli.StringFlag{Name: "org", Usage: "the `NAME` of the organisation", Value: "default"},
		&cli.StringFlag{Name: "channel", Usage: "the `NAME` of the channel", Value: "stable"},
		&cli.StringFlag{Name: "root", Usage: "the key set's `FILE`, root.json of keygen"},
	}
	store := []cli.Flag{
		&cli.StringFlag{Name: "store", Usage: "the bucket and prefix, `oss://BUCKET/PREFIX`; keys come from OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN"},
		&cli.StringFlag{Name: "endpoint", Usage: "the object store's `URL`, such as https://oss-cn-hangzhou.aliyuncs.com"},
		&cli.StringFlag{Name: "region", Usage: "the `REGION` that signatures name (default: as the endpoint says)"},
		&cli.StringFlag{Name: "signature", Usage: "v4 or v1", Value: "v4"},
	}
	url := &cli.StringFlag{Name: "url", Usage: "the bundle store's base `URL`, read without credentials"}
	join := func(lists ...[]cli.Flag) []cli.Flag {
		var all []cli.Flag
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	return &cli.Command{
		Name:  "bundle",
		Usage: "build, sign and publish platform bundles",
		Subcommands: []*cli.Command{
			{
				Name:  "keygen",
				Usage: "make the keys of a new platform",
				Description: "Writes root.key (replaces keys; keep it offline), publisher.key (signs channels) and\n" +
					"root.json (who may sign what; goes into every job image).",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "out", Usage: "the `DIR` to write to; made if need be"}},
				Action: bundleKeygen,
			},
			{
				Name:  "build",
				Usage: "assemble a bundle from a checkout",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "from", Usage: "the checkout's `DIR`", Value: "."},
					&cli.StringFlag{Name: "out", Usage: "the `DIR` to write to; must be new or empty"},
					&cli.StringFlag{Name: "version", Usage: "the bundle's `VERSION` (default: as platform/bundle.yml says, else made of the content)"},
					&cli.StringSliceFlag{Name: "runtime", Usage: "an image of a runtime by digest, `NAME.base=REF`, NAME.build=REF or, for a built-in layer, NAME.layers.LAYER=REF; may be repeated"},
					&cli.StringSliceFlag{Name: "without", Usage: "leave out the `RUNTIME` of bundle.yml; may be repeated"},
					&cli.StringSliceFlag{Name: "runner", Usage: "a stage-runner binary, `OS/ARCH=FILE`; may be repeated"},
					&cli.StringFlag{Name: "runner-version", Usage: "the `VERSION` that these binaries print"},
				},
				Action: bundleBuild,
			},
			{
				Name:  "publish",
				Usage: "store a built bundle and make it current in a channel",
				Flags: join([]cli.Flag{
					&cli.StringFlag{Name: "bundle", Usage: "the `DIR` that build wrote"},
					&cli.StringSliceFlag{Name: "key", Usage: "a private key's `FILE`; may be repeated"},
					&cli.StringFlag{Name: "why", Usage: "the `REASON`, for the audit log"},
					&cli.StringFlag{Name: "who", Usage: "the publisher's `NAME`, for the audit log (default: $USER)"},
					&cli.StringFlag{Name: "job", Usage: "the `URL` of the job that publishes, for the audit log"},
					&cli.IntFlag{Name: "percent", Usage: "the share of projects that get it", Value: 100},
					&cli.DurationFlag{Name: "lead", Usage: "how long from now until it is current; less than 60s may give the jobs of one pipeline two answers", Value: bundle.DefaultLead},
					&cli.DurationFlag{Name: "ttl", Usage: "how long the channel document counts as fresh", Value: 30 * 24 * time.Hour},
				}, channel, store),
				Action: func(c *cli.Context) error { return bundlePublish(c, getenv) },
			},
			{
				Name:   "status",
				Usage:  "show what a channel says",
				Flags:  join([]cli.Flag{url, &cli.BoolFlag{Name: "json", Usage: "print the channel document"}}, channel, store),
				Action: func(c *cli.Context) error { return bundleStatus(c, getenv) },
			},
			{
				Name:  "seed",
				Usage: "write what a job image carries: platform.json and the current bundle",
				Flags: join([]cli.Flag{
					url,
					&cli.StringFlag{Name: "read", Usage: "read from this `URL` now, when --url is only right in jobs"},
					&cli.StringFlag{Name: "out", Usage: "the `DIR` to write to; made if need be"},
					&cli.BoolFlag{Name: "empty", Usage: "write platform.json only: jobs depend on the store"},
				}, channel),
				Action: bundleSeed,
			},
		},
	}
}

// needed returns the values of flags that have no default, or one usage error
// for all that are missing. (The library's own Required is no usage error.)
func needed(c *cli.Context, names ...string) error {
	var missing []string
	for _, n := range names {
		if !c.IsSet(n) || c.String(n) == "" {
			missing = append(missing, "--"+n)
		}
	}
	if len(missing) > 0 {
		return cliapp.Usagef("not given: %s", strings.Join(missing, ", "))
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return &usererr.Error{Code: usererr.CodeUnable, What: "write the result", Err: err}
	}
	return nil
}

// explainBundle designs an error of the bundle commands. what is what the
// command was for.
func explainBundle(what string, err error) error {
	var designed *usererr.Error
	var down *oss.Unavailable
	e := &usererr.Error{Code: usererr.CodePublish, What: what, Err: err}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &designed):
		return err
	case errors.Is(err, bundle.ErrConflict):
		e.Class, e.Next = usererr.External, "run the command again: it starts from what the other publisher wrote"
	case errors.Is(err, oss.ErrVersioned):
		e.Next = "switch versioning off for this bucket, or use another one: publishers need create-only writes"
	case errors.Is(err, bundle.ErrOpenKey):
		e.Next = "chmod 600 that file; if others could have read it, make a new key"
	case errors.Is(err, bundle.ErrUntrusted):
		e.Code, e.Next = usererr.CodeUntrusted, "find out who wrote that before you publish over it"
	case errors.Is(err, bundle.ErrContent):
		e.Code, e.Next = usererr.CodeBundleContent, "correct what is named above and run the command again"
		for line := range strings.SplitSeq(err.Error(), "\n") {
			e.Problems = append(e.Problems, usererr.Problem{Why: line})
		}
	case errors.Is(err, bundle.ErrNone):
		e.Code = usererr.CodeNoBundle
	case errors.Is(err, oss.ErrDenied):
		e.Code = usererr.CodeStoreDenied
	case errors.Is(err, oss.ErrNotFound), errors.Is(err, oss.ErrNoBucket):
		e.Code = usererr.CodeNotFound
	case errors.As(err, &down), errors.Is(err, bundle.ErrUnavailable):
		e.Code, e.Next = usererr.CodeStoreUnavailable, "run the command again; what was stored already is not sent twice"
	case errors.Is(err, os.ErrNotExist):
		e.Next = "check the path"
	case errors.Is(err, os.ErrExist):
		e.Next = "choose another path: nothing is overwritten"
	case errors.Is(err, os.ErrPermission):
		e.Next = "check the path's permissions"
	}
	// A cancelled run is told as such, wherever it was caught.
	if of := usererr.Of(err); of.Code == usererr.CodeCancelled || of.Code == usererr.CodeTimeout {
		return of
	}
	return e
}

// keysMade is what keygen prints.
type keysMade struct {
	Root         string `json:"root"`
	RootKey      string `json:"rootKey"`
	PublisherKey string `json:"publisherKey"`
	Publisher    string `json:"publisher"` // key id
}

func bundleKeygen(c *cli.Context) error {
	if err := needed(c, "out"); err != nil {
		return err
	}
	const what = "make the platform's keys"
	dir := c.String("out")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return explainBundle(what, err)
	}
	made := keysMade{Root: filepath.Join(dir, "root.json"), RootKey: filepath.Join(dir, "root.key"), PublisherKey: filepath.Join(dir, "publisher.key")}
	for _, path := range []string{made.Root, made.RootKey, made.PublisherKey} {
		if _, err := os.Lstat(path); err == nil {
			return explainBundle(what, fmt.Errorf("%s: %w", path, os.ErrExist))
		}
	}
	keygen := func(path string) (ed25519.PublicKey, error) {
		pub, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		return pub, bundle.WritePrivateKey(path, key)
	}
	root, err := keygen(made.RootKey)
	if err != nil {
		return explainBundle(what, err)
	}
	publisher, err := keygen(made.PublisherKey)
	if err != nil {
		return explainBundle(what, err)
	}
	made.Publisher = bundle.KeyID(publisher)
	set := bundle.NewRoot(time.Now(), []ed25519.PublicKey{root}, []ed25519.PublicKey{publisher}, nil)
	raw, err := json.MarshalIndent(set, "", "  ")
	if err != nil {
		return explainBundle(what, err)
	}
	if err := os.WriteFile(made.Root, append(raw, '\n'), 0o644); err != nil {
		return explainBundle(what, err)
	}
	return printJSON(c.App.Writer, made)
}

// built is what build prints.
type built struct {
	Digest  string `json:"digest"`
	Version string `json:"version"`
	Files   int    `json:"files"`
	Dir     string `json:"dir"`
}

func bundleBuild(c *cli.Context) error {
	if err := needed(c, "out"); err != nil {
		return err
	}
	r := bundle.Recipe{Version: c.String("version"), Runtimes: map[string]bundle.Images{}, Without: c.StringSlice("without"), Generate: stages.BundleFiles}
	for _, v := range c.StringSlice("runtime") {
		// A runtime's name may have dots: python3.11.base=…
		target, ref, ok := strings.Cut(v, "=")
		dot := strings.LastIndex(target, ".")
		if !ok || dot < 1 || ref == "" {
			return cliapp.Usagef("--runtime %q is not NAME.base=REF or NAME.build=REF", v)
		}
		name, layer := target[:dot], ""
		if runtime, ok := strings.CutSuffix(name, ".layers"); ok {
			name, layer = runtime, target[dot+1:]
		}
		images := r.Runtimes[name]
		switch kind := target[dot+1:]; {
		case layer != "":
			if images.Layers == nil {
				images.Layers = map[string]string{}
			}
			images.Layers[layer] = ref
		case kind == "base":
			images.Base = ref
		case kind == "build":
			images.Build = ref
		default:
			return cliapp.Usagef("--runtime %q is not NAME.base=REF or NAME.build=REF", v)
		}
		r.Runtimes[name] = images
	}
	if runners := c.StringSlice("runner"); len(runners) > 0 {
		if c.String("runner-version") == "" {
			return cliapp.Usagef("--runner needs --runner-version")
		}
		r.Runner = &bundle.RunnerFiles{Version: c.String("runner-version"), Files: map[string]func() (io.ReadCloser, error){}}
		for _, v := range runners {
			platform, file, ok := strings.Cut(v, "=")
			if !ok || file == "" || !strings.Contains(platform, "/") {
				return cliapp.Usagef("--runner %q is not OS/ARCH=FILE", v)
			}
			r.Runner.Files[platform] = func() (io.ReadCloser, error) { return os.Open(file) }
		}
	} else if c.String("runner-version") != "" {
		return cliapp.Usagef("--runner-version needs --runner")
	}
	const what = "build the platform bundle"
	from, err := os.OpenRoot(c.String("from"))
	if err != nil {
		return explainBundle(what, err)
	}
	defer from.Close()
	p, err := bundle.Build(c.Context, from.FS(), r)
	if err != nil {
		return explainBundle(what, err)
	}
	if err := p.WriteDir(c.String("out")); err != nil {
		return explainBundle(what, err)
	}
	return printJSON(c.App.Writer, built{p.Digest, p.Version, p.Files, c.String("out")})
}

// openStore makes the store that --store and its companions name.
func openStore(c *cli.Context, getenv func(string) string) (oss.Store, error) {
	rest, ok := strings.CutPrefix(c.String("store"), "oss://")
	bucket, prefix, _ := strings.Cut(rest, "/")
	if !ok || bucket == "" {
		return nil, cliapp.Usagef("--store %q is not oss://BUCKET/PREFIX", c.String("store"))
	}
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	if getenv("OSS_ACCESS_KEY_ID") == "" || getenv("OSS_ACCESS_KEY_SECRET") == "" {
		return nil, &usererr.Error{
			Code: usererr.CodeStoreDenied, Err: errors.New("OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET are not both set"),
			Next: "set them, and OSS_SESSION_TOKEN for temporary keys",
		}
	}
	s, err := aliyun.New(aliyun.Config{
		Endpoint: c.String("endpoint"), Region: region(c.String("region"), c.String("endpoint")), Bucket: bucket, Prefix: prefix,
		AccessKeyID: getenv("OSS_ACCESS_KEY_ID"), AccessKeySecret: getenv("OSS_ACCESS_KEY_SECRET"), SecurityToken: getenv("OSS_SESSION_TOKEN"),
		Signature: c.String("signature"), UserAgent: "faasctl",
	})
	if err != nil {
		return nil, &usererr.Error{Code: usererr.CodeUsage, Err: err, Next: "see --store, --endpoint, --region and --signature in --help"}
	}
	return oss.Retry(s, oss.RetryOptions{}), nil
}

// region is the one given, or the one in the service's own host names:
// oss-cn-hangzhou[-internal].aliyuncs.com.
func region(given, endpoint string) string {
	if given != "" {
		return given
	}
	_, host, _ := strings.Cut(endpoint, "://")
	label, rest, _ := strings.Cut(host, ".")
	if r, ok := strings.CutPrefix(label, "oss-"); ok && strings.HasPrefix(rest, "aliyuncs.com") {
		return strings.TrimSuffix(r, "-internal")
	}
	return ""
}

// openReader reads over --url where it is given, else from --store.
func openReader(c *cli.Context, getenv func(string) string, url string) (oss.Reader, error) {
	if url == "" {
		return openStore(c, getenv)
	}
	h, err := oss.NewHTTP(url, oss.HTTPOptions{UserAgent: "faasctl"})
	if err != nil {
		return nil, &usererr.Error{Code: usererr.CodeUsage, Err: err}
	}
	return oss.RetryReader(h, oss.RetryOptions{}), nil
}

// published is what publish prints.
type published struct {
	Digest   string    `json:"digest"`
	Version  string    `json:"version"`
	Channel  string    `json:"channel"`
	Seq      uint64    `json:"seq"`
	From     time.Time `json:"from"`
	Percent  int       `json:"percent"`
	Objects  int       `json:"objects"`
	Uploaded int       `json:"uploaded"`
	Bytes    int64     `json:"bytes"`
}

func bundlePublish(c *cli.Context, getenv func(string) string) error {
	if err := needed(c, "bundle", "store", "endpoint", "root", "key", "why"); err != nil {
		return err
	}
	if p := c.Int("percent"); p < 1 || p > 100 {
		return cliapp.Usagef("--percent %d is not 1 to 100", p)
	}
	if c.Duration("lead") < 0 || c.Duration("ttl") <= 0 {
		return cliapp.Usagef("--lead and --ttl are spans of time ahead")
	}
	const what = "publish the platform bundle"
	ctx := c.Context
	// Everything that can be wrong here is found before anything is stored.
	root, err := bundle.ReadRoot(c.String("root"))
	if err != nil {
		return explainBundle(what, err)
	}
	var keys []ed25519.PrivateKey
	for _, path := range c.StringSlice("key") {
		k, err := bundle.ReadPrivateKey(path)
		if err != nil {
			return explainBundle(what, err)
		}
		keys = append(keys, k)
	}
	p, err := bundle.ReadDir(c.String("bundle"))
	if err != nil {
		return explainBundle(what, err)
	}
	s, err := openStore(c, getenv)
	if err != nil {
		return err
	}
	if err := oss.CheckCreateOnly(ctx, s); err != nil {
		return explainBundle(what, err)
	}
	newest, err := bundle.NewestRoot(ctx, s, root)
	if err != nil {
		return explainBundle(what, err)
	}
	if err := newest.MaySign(keys...); err != nil {
		return explainBundle(what, err)
	}
	org, name := c.String("org"), c.String("channel")
	prev, repair, err := bundle.Current(ctx, s, root, org, name)
	switch {
	case errors.Is(err, oss.ErrNotFound):
		prev = bundle.Channel{Org: org, Name: name}
	case err != nil:
		return explainBundle(what, err)
	case repair:
		fmt.Fprintf(c.App.ErrWriter, "seq %d of %s/%s (%s: %s) was never finished: finishing it first\n", prev.Seq, org, name, prev.Who, prev.Why)
		if prev, err = bundle.Repair(ctx, s, root, org, name); err != nil {
			return explainBundle(what, err)
		}
	}
	prev.Root = newest.N
	who := c.String("who")
	if who == "" {
		who = getenv("USER")
	}
	if c.Duration("lead") < bundle.DefaultLead {
		fmt.Fprintf(c.App.ErrWriter, "with --lead %s the jobs of a pipeline that is being created right now may choose different bundles\n", c.Duration("lead"))
	}
	sent, err := bundle.Publish(ctx, s, p)
	if err != nil {
		return explainBundle(what, err)
	}
	entry := bundle.Entry{Manifest: strings.TrimPrefix(p.Digest, "sha256:"), Version: p.Version, Percent: c.Int("percent")}
	next, err := bundle.Next(prev, entry, bundle.Terms{
		Now: time.Now(), Lead: c.Duration("lead"), TTL: c.Duration("ttl"), Who: who, Why: c.String("why"), Job: c.String("job"),
	})
	if err != nil {
		return explainBundle(what, err)
	}
	if err := bundle.Move(ctx, s, next, keys...); err != nil {
		return explainBundle(what, err)
	}
	return printJSON(c.App.Writer, published{
		Digest: p.Digest, Version: p.Version, Channel: org + "/" + name, Seq: next.Seq, From: next.Entries[0].From,
		Percent: c.Int("percent"), Objects: sent.Objects, Uploaded: sent.Uploaded, Bytes: sent.Bytes,
	})
}

func bundleStatus(c *cli.Context, getenv func(string) string) error {
	if err := needed(c, "root"); err != nil {
		return err
	}
	if c.String("url") == "" && (c.String("store") == "" || c.String("endpoint") == "") {
		return cliapp.Usagef("give --url, or --store and --endpoint")
	}
	const what = "read the channel"
	root, err := bundle.ReadRoot(c.String("root"))
	if err != nil {
		return explainBundle(what, err)
	}
	r, err := openReader(c, getenv, c.String("url"))
	if err != nil {
		return err
	}
	d, repair, err := bundle.Current(c.Context, r, root, c.String("org"), c.String("channel"))
	if err != nil {
		return explainBundle(what, err)
	}
	if repair {
		fmt.Fprintf(c.App.ErrWriter, "seq %d was never finished: readers still get the one before it; the next publish finishes it\n", d.Seq)
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, d)
	}
	writeStatus(c.App.Writer, d, time.Now())
	return nil
}

// writeStatus prints a channel for people.
func writeStatus(w io.Writer, d bundle.Channel, now time.Time) {
	day := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	fmt.Fprintf(w, "channel  %s/%s  seq %d  key set %d\n", d.Org, d.Name, d.Seq, d.Root)
	fmt.Fprintf(w, "issued   %s  by %s: %s\n", day(d.Issued), orNobody(d.Who), d.Why)
	late := ""
	if now.After(d.Expires) {
		late = "  EXPIRED: readers warn"
	}
	fmt.Fprintf(w, "fresh    until %s%s\n\n", day(d.Expires), late)
	revoked := map[string]string{}
	for _, r := range d.Revoked {
		revoked[r.Manifest] = r.Why
	}
	for _, e := range d.Entries {
		state := ""
		if why, yes := revoked[e.Manifest]; yes {
			state = "  REVOKED: " + why
		} else if e.From.After(now) {
			state = "  in " + e.From.Sub(now).Round(time.Second).String()
		}
		fmt.Fprintf(w, "  %s  %3d %%  %.12s  %-16s  %s: %s%s\n", day(e.From), e.Percent, e.Manifest, e.Version, orNobody(e.Who), e.Why, state)
	}
	for _, p := range d.Pins {
		whom := p.Path
		if p.Project != 0 {
			whom = fmt.Sprintf("project %d", p.Project)
		}
		fmt.Fprintf(w, "  pin  %s  %.12s  %s\n", whom, p.Manifest, p.Why)
	}
}

func orNobody(who string) string {
	if who == "" {
		return "(nobody named)"
	}
	return who
}

// seeded is what seed prints.
type seeded struct {
	Dir     string `json:"dir"`
	Digest  string `json:"digest,omitempty"`
	Version string `json:"version,omitempty"`
	Seq     uint64 `json:"seq,omitempty"`
}

func bundleSeed(c *cli.Context) error {
	if err := needed(c, "url", "root", "out"); err != nil {
		return err
	}
	const what = "write the job image's seed"
	root, err := bundle.ReadRoot(c.String("root"))
	if err != nil {
		return explainBundle(what, err)
	}
	p := bundle.Platform{Format: 1, URL: c.String("url"), Org: c.String("org"), Channel: c.String("channel"), Root: root}
	dir := c.String("out")
	if c.Bool("empty") {
		if err := p.Write(dir); err != nil {
			return explainBundle(what, err)
		}
		return printJSON(c.App.Writer, seeded{Dir: dir})
	}
	from := c.String("read")
	if from == "" {
		from = c.String("url")
	}
	r, err := openReader(c, nil, from)
	if err != nil {
		return err
	}
	ch, err := bundle.WriteSeed(c.Context, &bundle.Client{Store: r, Root: root}, p, dir)
	if err != nil {
		return explainBundle(what, err)
	}
	return printJSON(c.App.Writer, seeded{dir, ch.Digest, ch.Version, ch.Seq})
}
