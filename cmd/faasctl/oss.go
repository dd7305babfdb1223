package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"

	"github.com/urfave/cli/v2"

	"github.com/kuroko-faas/kuroko/internal/cliapp"
	"github.com/kuroko-faas/kuroko/internal/usererr"
	"github.com/kuroko-faas/kuroko/oss/ossd"
)

func ossCommand(getenv func(string) string) *cli.Command {
	return &cli.Command{
		Name:  "oss",
		Usage: "work with the object store",
		Subcommands: []*cli.Command{{
			Name:  "dev",
			Usage: "serve a folder as an object store, for development and tests",
			Description: "Prints one line of JSON on stdout when it listens, and ends on SIGTERM.\n" +
				"The access key comes from OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET; if they are\n" +
				"not set, one is made and printed on stderr.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "root", Usage: "the `DIR` that holds the data; made if need be"},
				&cli.StringFlag{Name: "addr", Usage: "the `ADDRESS` to listen on; port 0 takes a free one", Value: "127.0.0.1:9000"},
				&cli.StringFlag{Name: "bucket", Usage: "the `NAME` of the bucket to make sure of", Value: "kuroko"},
				&cli.BoolFlag{Name: "public-read", Usage: "let everybody read the bucket"},
				&cli.StringFlag{Name: "region", Usage: "the `REGION` that signatures must name", Value: "cn-hangzhou"},
				&cli.BoolFlag{Name: "verbose", Usage: "log every request on stderr"},
			},
			Action: func(c *cli.Context) error { return serveOSS(c, getenv) },
		}},
	}
}

// listening is what `oss dev` prints on stdout.
type listening struct {
	Endpoint    string `json:"endpoint"`
	Region      string `json:"region"`
	Bucket      string `json:"bucket"`
	URL         string `json:"url"` // of the bucket, for reading over plain HTTP
	PublicRead  bool   `json:"publicRead"`
	AccessKeyID string `json:"accessKeyId"`
}

func serveOSS(c *cli.Context, getenv func(string) string) error {
	unable := func(err error) error {
		return &usererr.Error{Code: usererr.CodeUnable, What: "serve the object store", Err: err}
	}
	key := ossd.Key{ID: getenv("OSS_ACCESS_KEY_ID"), Secret: getenv("OSS_ACCESS_KEY_SECRET")}
	if (key.ID == "") != (key.Secret == "") {
		return cliapp.Usagef("set both OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET, or neither")
	}
	if c.String("root") == "" { // Required would bypass the usage error
		return cliapp.Usagef("--root is needed")
	}
	acl := ossd.Private
	if c.Bool("public-read") {
		acl = ossd.PublicRead
	}
	srv, err := ossd.New(c.String("root"))
	if err != nil {
		return unable(err)
	}
	defer srv.Close()
	srv.Region = c.String("region")
	if c.Bool("verbose") {
		srv.Log = func(line string) { fmt.Fprintln(c.App.ErrWriter, line) }
	}
	if err := srv.CreateBucket(c.String("bucket"), acl); err != nil {
		return unable(err)
	}
	ln, err := net.Listen("tcp", c.String("addr"))
	if err != nil {
		return unable(err)
	}
	if key.ID == "" {
		key = ossd.Key{ID: "dev" + rand.Text()[:12], Secret: rand.Text()}
		fmt.Fprintf(c.App.ErrWriter, "made an access key for this run:\n  export OSS_ACCESS_KEY_ID=%s OSS_ACCESS_KEY_SECRET=%s\n", key.ID, key.Secret)
	}
	srv.AddKey(key)
	endpoint := "http://" + ln.Addr().String()
	line := listening{Endpoint: endpoint, Region: srv.Region, Bucket: c.String("bucket"), URL: endpoint + "/" + c.String("bucket"), PublicRead: acl == ossd.PublicRead, AccessKeyID: key.ID}
	if err := json.NewEncoder(c.App.Writer).Encode(line); err != nil {
		ln.Close()
		return unable(err)
	}
	if err := srv.Serve(c.Context, ln); err != nil {
		return unable(err)
	}
	return nil
}
