package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/ci"
	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/project/importer"
	"github.com/kuroko-faas/kuroko/stages"
)

// schema prints the schema of the bundle that the next pipeline would run.
func (c command) schema(ctx *cli.Context) error {
	job := ci.Job{}
	var err error
	if job.Dir, err = filepath.Abs(ctx.String("dir")); err != nil {
		return err
	}
	b, err := c.bundle(ctx.Context, job, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	data, err := stages.Schema(b)
	if err != nil {
		return stages.Explain(ctx.Context, err)
	}
	_, err = c.stdout.Write(data)
	return err
}

// maxImport is where reading stops; the importer refuses from 1 MiB on.
const maxImport = 1<<20 + 1

// importFile prints a faas.yml on stdout, and on stderr a line for each thing
// that has no equivalent.
func (c command) importFile(ctx *cli.Context) error {
	if ctx.Args().Len() != 1 {
		return cliapp.Usagef("name one file, for example: faas import serverless.yml")
	}
	file := ctx.Args().First()
	bad := func(err error) error {
		return &usererr.Error{Code: usererr.CodeUsage, What: "import " + file, Err: err, Next: "see the formats in docs/faas-yml.md, or name one with --from"}
	}
	f, err := os.Open(file)
	if err != nil {
		return bad(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImport))
	if err != nil {
		return bad(err)
	}
	res, err := importer.Import(filepath.Base(file), data, importer.Options{Format: importer.Format(ctx.String("from"))})
	if err != nil {
		return bad(err)
	}
	if _, err := c.stdout.Write(res.YAML); err != nil {
		return err
	}
	for _, n := range res.Notes {
		fmt.Fprintf(c.stderr, "%s: %s\n", file, n)
	}
	if len(res.Problems) == 0 {
		return nil
	}
	e := &usererr.Error{Code: usererr.CodeProjectFile, What: "complete the faas.yml that was made", Err: errors.New("something is missing")}
	for _, p := range res.Problems {
		e.Problems = append(e.Problems, usererr.Problem{Why: p.String(), Next: p.Next})
	}
	return e
}
