package oss_test

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/oss/ossd"
)

// A publisher writes with a key, everybody reads without one.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "oss")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	server, err := ossd.New(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	server.AddKey(ossd.Key{ID: "id", Secret: "secret"})
	if err := server.CreateBucket("bundles", ossd.PublicRead); err != nil {
		fmt.Println(err)
		return
	}
	listening := httptest.NewServer(server)
	defer listening.Close()

	bucket, err := aliyun.New(aliyun.Config{Endpoint: listening.URL, Region: "cn-hangzhou", Bucket: "bundles", AccessKeyID: "id", AccessKeySecret: "secret"})
	if err != nil {
		fmt.Println(err)
		return
	}
	publisher := oss.Retry(bucket, oss.RetryOptions{})
	for _, who := range []string{"first", "second"} {
		err := publisher.Create(ctx, "v1/lock", []byte(who), oss.PutOptions{})
		fmt.Println(who, "won:", !errors.Is(err, oss.ErrExists))
	}

	plain, err := oss.NewHTTP(listening.URL+"/bundles", oss.HTTPOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	reader := oss.RetryReader(plain, oss.RetryOptions{})
	body, info, err := oss.ReadAll(ctx, reader, "v1/lock", oss.GetOptions{}, 1<<20)
	fmt.Println(string(body), err)
	_, _, err = oss.ReadAll(ctx, reader, "v1/lock", oss.GetOptions{IfNoneMatch: info.ETag}, 1<<20)
	fmt.Println(err)
	// Output:
	// first won: true
	// second won: false
	// first <nil>
	// oss: get v1/lock: not modified
}
