package kaniko

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuroko-faas/kuroko/builder"
	"github.com/kuroko-faas/kuroko/builder/rootfs"
	"github.com/kuroko-faas/kuroko/internal/sandbox"
)

// build is one image being made.
type build struct {
	e      *Engine
	r      *registry
	src    Source
	work   string
	files  files
	d      *Dockerfile
	store  *store
	shared bool                // the store is other builds' too
	bases  map[string]v1.Image // by reference
	keys   map[int][]string    // by stage, one per step and one for none
	stages map[int]*built
	trees  map[string]*rootfs.Tree

	mode    sandbox.Mode
	sandbox string // where commands ran; "" when none did
	runs    int
}

// built is a finished stage.
type built struct {
	ref     string // of base
	base    v1.Image
	layers  []made
	config  v1.Config
	history []v1.History
}

// mountable are the layers as they are pushed.
func (b *built) mountable() []made {
	out := slices.Clone(b.layers)
	for i, l := range out {
		if c, ok := l.Layer.(*cachedLayer); ok {
			out[i].Layer = &remote.MountableLayer{Layer: c.Layer, Reference: c.repo.Tag("latest")}
		}
	}
	return out
}

func (b *build) close() {
	for _, t := range b.trees {
		t.Close()
	}
}

// check refuses what can't be built, everything at once.
func (b *build) check() error {
	d, err := Parse(b.src.Dockerfile, b.src.Args, b.src.Target)
	if err == nil {
		found := d.check(b.files, nil)
		for _, p := range d.MissingSecrets(b.src.Secrets, "this build was not given") {
			if !p.Advice {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			err = found
		}
	}
	if err != nil {
		file := b.src.Path
		if file == "" {
			file = "Dockerfile"
		}
		return &builder.InputError{What: file + " can't be built", Next: "correct the lines named above", Err: err}
	}
	b.d = d
	b.store = &store{dir: filepath.Join(b.work, "store"), limit: b.e.o.CacheBytes}
	if b.e.o.CacheDir != "" {
		b.store.dir, b.shared = b.e.o.CacheDir, true
	}
	return nil
}

// resolve asks the registries for the images that are needed.
func (b *build) resolve(ctx context.Context) error {
	for _, base := range b.d.Bases {
		if b.bases[base.Ref] != nil {
			continue
		}
		img, err := b.r.base(ctx, base.verb(), base.Ref)
		if err == nil {
			err = acceptable(base.String(), img)
		}
		var input *builder.InputError
		if errors.As(err, &input) {
			input.What = fmt.Sprintf("line %d, column %d: %s", base.Line, base.Column, input.What)
		}
		if err != nil {
			return err
		}
		b.bases[base.Ref] = img
	}
	return nil
}

// acceptable refuses a base that can't be used as it is.
func acceptable(what string, base v1.Image) error {
	c, err := base.ConfigFile()
	if err != nil {
		return fmt.Errorf("kaniko: %s: %w", what, err)
	}
	if len(c.Config.OnBuild) > 0 && strings.HasPrefix(what, "FROM") {
		return &builder.InputError{What: what + ": the image has ONBUILD instructions, which are not possible here", Next: "write them into the Dockerfile"}
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != runtime.GOARCH {
		return &builder.InputError{What: fmt.Sprintf("%s: the image is for %s/%s, and this machine builds linux/%s", what, c.OS, c.Architecture, runtime.GOARCH), Next: "use an image for this architecture"}
	}
	return nil
}

// image is the one that a stage stands on in the end.
func (b *build) image(i int) (v1.Image, string) {
	ref := b.d.root(i)
	if ref == scratch {
		return empty.Image, ref
	}
	return b.bases[ref], ref
}

// proxies are arguments that a RUN sees without declaring them.
var proxies = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// stageKeys are the keys of a stage: the first before any step, then one after
// each. Equal keys mean equal layers: they cover the base, every instruction as
// it is written, the values of arguments, and names, modes and contents of all
// files that are copied. kaniko's own keys lack the names.
func (b *build) stageKeys(i int) ([]string, error) {
	if k := b.keys[i]; k != nil {
		return k, nil
	}
	base, _ := b.image(i)
	digest, err := base.Digest()
	if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	parts := []string{version, compressor.ID(), runtime.GOARCH, digest.String()}
	for _, p := range proxies {
		parts = append(parts, b.src.Args[p], b.src.Args[strings.ToLower(p)])
	}
	keys := []string{keyOf(parts...)}
	for _, st := range b.d.chain(i) {
		parts := append([]string{keys[len(keys)-1], st.text}, st.args...)
		switch {
		case st.fromStage >= 0:
			from, err := b.stageKeys(st.fromStage)
			if err != nil {
				return nil, err
			}
			parts = append(parts, from[len(from)-1])
		case st.fromImage != "":
			digest, err := b.bases[st.fromImage].Digest()
			if err != nil {
				return nil, fmt.Errorf("kaniko: %w", err)
			}
			parts = append(parts, digest.String())
		case st.copies:
			parts = append(parts, b.files.sum(st.sources, st.everything))
		}
		more, err := b.mountKeys(st)
		if err != nil {
			return nil, err
		}
		parts = append(parts, more...)
		keys = append(keys, keyOf(parts...))
	}
	b.keys[i] = keys
	return keys, nil
}

func keyOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// imageKey is equal when the whole image would be.
func (b *build) imageKey() string {
	keys, err := b.stageKeys(b.d.target)
	if err != nil {
		return keyOf("none") // the error comes again where it can be told
	}
	return keyOf("image", keys[len(keys)-1])
}

// stage makes a stage, or finds what an earlier build made of it.
func (b *build) stage(ctx context.Context, i int) (*built, error) {
	if s := b.stages[i]; s != nil {
		return s, nil
	}
	keys, err := b.stageKeys(i)
	if err != nil {
		return nil, err
	}
	s := &built{}
	s.base, s.ref = b.image(i)
	chain := b.d.chain(i)
	at, p, repo, err := b.deepest(ctx, chain, keys)
	if err != nil {
		return nil, err
	}
	if p != nil {
		for n, l := range p.opened {
			if repo != nil {
				l = &cachedLayer{l, *repo}
			}
			s.layers = append(s.layers, made{l, p.Layers[n].Title, true})
		}
		s.history = p.History
		fmt.Fprintf(b.e.log, "[%s %d/%d] %s: found in the cache\n", b.d.stages[i].name, at, len(chain), FirstLine(chain[at-1].title))
	}
	if p != nil && p.Config != nil && at == len(chain) {
		s.config = *p.Config
	} else if err := b.execute(ctx, i, s, chain, keys, at); err != nil {
		return nil, err
	}
	b.stages[i] = s
	return s, nil
}

// FirstLine shortens an instruction for a line of the log.
func FirstLine(s string) string {
	s, _, cut := strings.Cut(s, "\n")
	const most = 120
	if r := []rune(s); len(r) > most {
		s, cut = string(r[:most]), true
	}
	if cut {
		s += " …"
	}
	return s
}

// execute carries out the steps from number at on, over s.
func (b *build) execute(ctx context.Context, i int, s *built, chain []step, keys []string, at int) error {
	if err := b.rights(ctx); err != nil {
		return err
	}
	for {
		to := at + piece(chain, at)
		if err := b.carryOut(ctx, i, s, chain, keys, at, to); err != nil {
			return err
		}
		if at = to; at == len(chain) {
			return nil
		}
	}
}

// carryOut has one sandbox carry out the steps from number at to before to.
func (b *build) carryOut(ctx context.Context, i int, s *built, chain []step, keys []string, at, to int) error {
	config, err := s.base.ConfigFile()
	if err != nil {
		return b.r.failed("read", s.ref, err)
	}
	order := Order{
		Dockerfile: b.src.Dockerfile, Skip: at, Until: to, Machine: slices.Concat(b.e.o.Env, b.src.Env), Name: b.d.stages[i].name, Args: b.d.args, Meta: b.d.meta,
		From: map[int]int{}, Rootless: b.mode == sandbox.UserNS,
	}
	for k := i; k >= 0; k = b.d.stages[k].on {
		order.Chain = append([]int{k}, order.Chain...)
	}
	if order.Config, err = json.Marshal(config.Config); err != nil {
		return fmt.Errorf("kaniko: %w", err)
	}
	var from [][]string
	sources := map[int]source{}
	for n, st := range chain[at:to] {
		var other *built
		switch {
		case st.fromStage >= 0:
			if other, err = b.stage(ctx, st.fromStage); err != nil {
				return err
			}
		case st.fromImage != "":
			other = &built{ref: st.fromImage, base: b.bases[st.fromImage]}
		default:
			continue
		}
		src, err := b.taken(ctx, other, st)
		if err != nil {
			return err
		}
		sources[at+n] = src
		order.From[at+n] = len(from)
		from = append(from, dirs(src.trees))
	}
	below, err := b.below(ctx, s, config.Config, chain[:to], at, sources)
	if err != nil {
		return err
	}
	var mounts mounted
	if at < to && chain[at].alone() {
		if mounts, err = b.mounted(ctx, chain[at], config.Config.WorkingDir); err != nil {
			return err
		}
		defer mounts.done()
		order.Env = mounts.env
	}
	b.runs++
	inside := filepath.Join(b.work, fmt.Sprintf("kaniko-%d", b.runs))
	outcome, err := b.child(ctx, inside, dirs(below), from, mounts.binds, order)
	if errors.Is(err, fs.ErrNotExist) && slices.ContainsFunc(mounts.binds, func(m sandbox.Bind) bool { return m.Part != "" }) {
		return &builder.InputError{What: fmt.Sprintf("line %d: RUN --mount=type=bind: its source is not there", chain[at].line), Next: "correct the Dockerfile", Err: err}
	}
	if err != nil {
		return err
	}
	s.config = v1.Config{}
	if err := json.Unmarshal(outcome.Config, &s.config); err != nil {
		return fmt.Errorf("kaniko: the executor's answer: %w", err)
	}
	err = b.collect(ctx, s, chain[:to], keys, at, to == len(chain), below, filepath.Join(inside, "out"), outcome)
	_ = rootfs.Remove(inside)
	var input *builder.InputError
	if err != nil && !errors.As(err, &input) && ctx.Err() == nil {
		err = fmt.Errorf("kaniko: read what the executor made: %w", err)
	}
	return err
}

// collect takes the new layers out of the executor's folder, and remembers
// them for later builds.
func (b *build) collect(ctx context.Context, s *built, chain []step, keys []string, at int, whole bool, below []*rootfs.Tree, out string, o Outcome) error {
	root, err := os.OpenRoot(out)
	if err != nil {
		return err
	}
	defer root.Close()
	k, err := newKnown(below, b.mode == sandbox.Root)
	if err != nil {
		return err
	}
	defer k.close()
	for n := at; n < len(chain); n++ {
		h := v1.History{Created: v1.Time{Time: time.Unix(0, 0).UTC()}, CreatedBy: chain[n].title, EmptyLayer: true}
		if slices.Contains(o.Layers, n) {
			if err := b.reveals(root, fmt.Sprintf("%d.tar", n), chain[n]); err != nil {
				return err
			}
			l, err := normalise(root, fmt.Sprintf("%d.tar", n), b.e.o.TmpDir, k)
			if err != nil {
				var input *builder.InputError
				if errors.As(err, &input) {
					input.What = fmt.Sprintf("line %d: %s: %s", chain[n].line, FirstLine(chain[n].title), input.What)
				}
				return err
			}
			if l != nil {
				h.EmptyLayer = false
				err := b.store.put(l)
				info := l.Info()
				if err = errors.Join(err, l.Close()); err != nil {
					return err
				}
				kept, err := b.store.layer(storedLayer{Info: info})
				if err != nil {
					return err
				}
				s.layers = append(s.layers, made{Layer: kept, title: chain[n].title})
			}
		}
		s.history = append(s.history, h)
		last := whole && n == len(chain)-1
		if !chain[n].run && !last {
			continue
		}
		if err := b.remember(ctx, s, keys[n+1], chain[n].run, last); err != nil {
			return err
		}
	}
	return nil
}

// dirs are the trees' folders.
func dirs(list []*rootfs.Tree) []string {
	var out []string
	for _, t := range list {
		out = append(out, t.Dir)
	}
	return out
}

// unpacked are a stage's files: its layers, the top one first, and its base.
// With part only some files of the layers need to be there.
func (b *build) unpacked(ctx context.Context, s *built, part *rootfs.Part) ([]*rootfs.Tree, error) {
	var list []*rootfs.Tree
	for _, l := range slices.Backward(s.layers) {
		id, err := l.DiffID()
		if err != nil {
			return nil, fmt.Errorf("kaniko: %w", err)
		}
		want := rootfs.Want{Name: id.Hex, Overlay: true, Part: part, Layers: func() ([]v1.Layer, error) { return []v1.Layer{l.Layer}, nil }}
		t, _, err := b.tree(ctx, s, want)
		if errors.Is(err, rootfs.ErrNotInPart) {
			want.Part = nil
			t, _, err = b.tree(ctx, s, want)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	digest, err := s.base.Digest()
	if err != nil {
		return nil, fmt.Errorf("kaniko: %w", err)
	}
	t, kept, err := b.tree(ctx, s, rootfs.Want{Name: digest.Hex, Layers: s.base.Layers})
	if err == nil && !kept && s.base != empty.Image {
		fmt.Fprintf(b.e.log, "unpacked %s\n", s.ref)
	}
	return append(list, t), err
}

// tree opens a tree of the store and keeps it until the build's end.
func (b *build) tree(ctx context.Context, s *built, want rootfs.Want) (t *rootfs.Tree, kept bool, err error) {
	key := want.Name
	if t := b.trees[key]; t != nil {
		return t, true, nil
	}
	if want.Part != nil {
		key += "-" + want.Part.ID
	}
	if t := b.trees[key]; t != nil {
		return t, true, nil
	}
	want.Owners = b.mode == sandbox.Root
	t, kept, err = b.store.trees().Tree(ctx, want)
	switch {
	case err == nil:
		b.trees[key] = t
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case !errors.Is(err, rootfs.ErrNotInPart):
		err = b.r.failed("unpack", s.ref, err)
	}
	return t, kept, err
}

// cachedLayer is a layer that repo has, so that it needn't be sent again.
type cachedLayer struct {
	v1.Layer
	repo name.Repository
}
