package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/kuroko-faas/kuroko/deployer"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/redact"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project"
	"github.com/kuroko-faas/kuroko/stages"
)

func (c command) secretCommand(where []cli.Flag) *cli.Command {
	return &cli.Command{
		Name: "secret", Usage: "keep the secrets that faas.yml names",
		Subcommands: []*cli.Command{
			{Name: "set", ArgsUsage: "NAME", Usage: "store what standard input says under a name of faas.yml", Action: c.secretSet, Flags: where,
				Description: "The value is read from standard input alone, and shown nowhere. Of one line, the\n" +
					"line's end is left out. The next deploy makes new revisions of the units that read it."},
			{Name: "list", Usage: "print the names, who set them and when; no values", Action: c.secretList, Flags: where},
			{Name: "unset", ArgsUsage: "NAME", Usage: "remove a stored value", Action: c.secretUnset, Flags: where},
		},
	}
}

// secrets connects to the target that keeps the service's secrets. The caller
// closes the runner's bundle.
func (c command) secrets(ctx *cli.Context) (*stages.Runner, deployer.Scope, stages.Target, deployer.Secrets, error) {
	r, scope, t, err := c.target(ctx)
	if err != nil {
		return nil, deployer.Scope{}, stages.Target{}, nil, err
	}
	keeper, ok := t.Target.(deployer.Secrets)
	if !ok {
		err := &usererr.Error{
			Code: usererr.CodeEnvironment, What: "keep secrets of " + scope.String(), Err: fmt.Errorf("the %s target has none", t.Kind),
			Next: "use an environment on a cluster",
		}
		return nil, deployer.Scope{}, stages.Target{}, nil, errors.Join(err, r.Bundle.Close())
	}
	return r, scope, t, keeper, nil
}

func (c command) secretSet(ctx *cli.Context) error {
	return c.changeSecret(ctx, "set", func(keeper deployer.Secrets, scope deployer.Scope, name string, k deployer.SecretKey) (string, error) {
		value, err := c.secretValue(name)
		if err != nil {
			return "", err
		}
		defer clear(value)
		k.By, k.At = c.who(), time.Now().UTC().Truncate(time.Second)
		if err := keeper.SetSecret(ctx.Context, scope, k, value); err != nil {
			return "", masked(explainSecret(ctx, k, err), value)
		}
		return fmt.Sprintf("%s is set (%s/%s in %s); the next deploy rolls the units that read it\n", name, k.Secret, k.Key, scope.Environment), nil
	})
}

func (c command) secretUnset(ctx *cli.Context) error {
	return c.changeSecret(ctx, "unset", func(keeper deployer.Secrets, scope deployer.Scope, name string, k deployer.SecretKey) (string, error) {
		err := keeper.UnsetSecret(ctx.Context, scope, k)
		if errors.Is(err, deployer.ErrNotFound) {
			return "", &usererr.Error{Code: usererr.CodeUsage, What: "unset " + name, Err: fmt.Errorf("secret %s has no key %s", k.Secret, k.Key), Next: "faas secret list prints what there is"}
		}
		if err != nil {
			return "", explainSecret(ctx, k, err)
		}
		return fmt.Sprintf("%s is unset (%s/%s in %s); units that read it can't start again\n", name, k.Secret, k.Key, scope.Environment), nil
	})
}

// changeSecret finds what the one argument means, and prints what do says.
func (c command) changeSecret(ctx *cli.Context, verb string, do func(deployer.Secrets, deployer.Scope, string, deployer.SecretKey) (string, error)) error {
	if ctx.Args().Len() != 1 {
		return cliapp.Usagef("name one secret of faas.yml, for example: faas secret %s API_TOKEN --env prod; a value comes from standard input alone", verb)
	}
	r, scope, _, keeper, err := c.secrets(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	p, err := r.Project(ctx.Context)
	if err != nil {
		return err
	}
	name := ctx.Args().First()
	k, err := secretNamed(p, name)
	if err != nil {
		return err
	}
	text, err := do(keeper, scope, name, k)
	if err != nil {
		return err
	}
	return c.print(ctx, map[string]string{"name": name, "secret": k.Secret, "key": k.Key, "done": verb}, text)
}

// secretRow is one line of the list.
type secretRow struct {
	Name string `json:"name,omitempty"` // in faas.yml; empty: nothing reads it
	deployer.SecretKey
	State string `json:"state"` // set, missing, or of another owner
}

const (
	secretIsSet   = "set"
	secretMissing = "missing"
	secretForeign = "kept by others"
)

func (c command) secretList(ctx *cli.Context) error {
	r, scope, t, keeper, err := c.secrets(ctx)
	if err != nil {
		return err
	}
	defer r.Bundle.Close()
	p, err := r.Project(ctx.Context)
	if err != nil {
		return err
	}
	own, err := keeper.Secrets(ctx.Context, scope)
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	var sources []deployer.Source
	for _, k := range secretNames(p) {
		sources = append(sources, deployer.SecretSource(k.Secret))
	}
	there, err := t.Versions(ctx.Context, scope, sources)
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	rows := secretRows(p, own, there)
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		name, at, who := row.Name, "", row.By
		if name == "" {
			name = "(nothing reads it)"
		}
		if !row.At.IsZero() {
			at = row.At.Format(time.RFC3339)
		}
		if row.State == secretMissing {
			who = "faas secret set " + row.Name + " --env " + scope.Environment
		}
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\t%s\n", name, row.Secret, row.Key, row.State, at, who)
	}
	w.Flush()
	text := strings.Builder{}
	for line := range strings.Lines(b.String()) {
		text.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if len(rows) == 0 {
		text.WriteString(scope.String() + ": faas.yml names no secrets, and none are kept\n")
	}
	return c.print(ctx, rows, text.String())
}

// named is a key and its name in faas.yml.
type named struct {
	deployer.SecretKey
	name string
}

// secretNames are what the project's units read, sorted by name.
func secretNames(p *project.Project) []named {
	var all []named
	for _, u := range p.Units {
		for n, r := range u.Secrets {
			all = append(all, named{deployer.SecretKey{Secret: r.Name, Key: r.Key}, n})
		}
	}
	slices.SortFunc(all, func(a, b named) int {
		return strings.Compare(a.name+" "+a.Secret+"/"+a.Key, b.name+" "+b.Secret+"/"+b.Key)
	})
	return slices.Compact(all)
}

// secretNamed is the key that faas.yml calls name, or that is secret/key.
func secretNamed(p *project.Project, name string) (deployer.SecretKey, error) {
	bad := func(why, next string) (deployer.SecretKey, error) {
		return deployer.SecretKey{}, &usererr.Error{Code: usererr.CodeUsage, What: "find secret " + name, Err: errors.New(why), Next: next}
	}
	var found []deployer.SecretKey
	var names []string
	for _, k := range secretNames(p) {
		names = append(names, k.name)
		if path := k.Secret + "/" + k.Key; (k.name == name || path == name) && !slices.Contains(found, k.SecretKey) {
			found = append(found, k.SecretKey)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return bad(fmt.Sprintf("it is %s/%s in one unit and %s/%s in another", found[0].Secret, found[0].Key, found[1].Secret, found[1].Key),
			fmt.Sprintf("name the key itself: %s/%s", found[0].Secret, found[0].Key))
	case len(names) == 0:
		return bad("faas.yml names no secrets", "add provider.secrets: {"+name+": <secret>/<key>}")
	}
	return bad("faas.yml names no such secret in this environment", "use one of: "+strings.Join(slices.Compact(names), ", "))
}

// secretRows puts what faas.yml reads beside what is kept.
func secretRows(p *project.Project, own []deployer.SecretKey, there map[deployer.Source]string) []secretRow {
	kept := map[[2]string]deployer.SecretKey{}
	ours := map[string]bool{}
	for _, k := range own {
		kept[[2]string{k.Secret, k.Key}] = k
		ours[k.Secret] = true
	}
	rows := []secretRow{}
	for _, n := range secretNames(p) {
		row := secretRow{Name: n.name, SecretKey: n.SecretKey, State: secretMissing}
		at := [2]string{n.Secret, n.Key}
		if k, ok := kept[at]; ok {
			row.SecretKey, row.State = k, secretIsSet
		} else if _, exists := there[deployer.SecretSource(n.Secret)]; exists && !ours[n.Secret] {
			row.State = secretForeign
		}
		rows = append(rows, row)
	}
	for _, k := range own {
		if !slices.ContainsFunc(rows, func(r secretRow) bool { return r.Secret == k.Secret && r.Key == k.Key }) {
			rows = append(rows, secretRow{SecretKey: k, State: secretIsSet})
		}
	}
	return rows
}

// maxSecret bounds a value: all keys of a Secret together have 1 MiB.
const maxSecret = 256 << 10

// secretValue reads the value, without an echo where a person types it.
func (c command) secretValue(name string) ([]byte, error) {
	bad := func(why, next string) ([]byte, error) {
		return nil, &usererr.Error{Code: usererr.CodeUsage, What: "read the value of " + name, Err: errors.New(why), Next: next}
	}
	var value []byte
	var err error
	if f, ok := c.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(c.stderr, "value of %s (not shown), then Enter: ", name)
		value, err = term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(c.stderr)
	} else {
		value, err = io.ReadAll(io.LimitReader(c.stdin, maxSecret+1))
	}
	if err != nil {
		return bad("standard input: "+err.Error(), "give the value on standard input")
	}
	if len(value) > maxSecret {
		return bad(fmt.Sprintf("it is longer than %d KiB", maxSecret>>10), "keep large files elsewhere, and their address here")
	}
	// One line is a value that a shell ended with a newline; several are a
	// file, kept as it is.
	if line, ok := bytes.CutSuffix(value, []byte("\n")); ok && !bytes.Contains(line, []byte("\n")) {
		value = bytes.TrimSuffix(line, []byte("\r"))
	}
	if len(value) == 0 {
		return bad("standard input is empty", "for example: faas secret set "+name+" < file")
	}
	return value, nil
}

// explainSecret says who can act when the target refuses.
func explainSecret(ctx *cli.Context, k deployer.SecretKey, err error) error {
	if errors.Is(err, deployer.ErrForeign) {
		return &usererr.Error{
			Code: usererr.CodeForeignObject, What: "change secret " + k.Secret, Err: err,
			Next: "ask who keeps it, or name another secret in faas.yml: this service's own are made by faas secret set",
		}
	}
	return stages.Explain(ctx.Context, err)
}

// masked is err without the value, which a webhook's message may repeat.
func masked(err error, value []byte) error {
	text := redact.New(string(value))
	e := *usererr.Of(err)
	e.What, e.Next = text.String(e.What), text.String(e.Next)
	if e.Err != nil {
		e.Err = errors.New(text.String(e.Err.Error()))
	}
	e.Problems = slices.Clone(e.Problems)
	for i, p := range e.Problems {
		e.Problems[i].Why, e.Problems[i].Next = text.String(p.Why), text.String(p.Next)
	}
	return &e
}
