package aliyun_test

import (
	"testing"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/oss/ossd"
	"github.com/kuroko-faas/kuroko/oss/osstest"
)

// config is the one that fits s.
func config(s *osstest.Server) aliyun.Config {
	return aliyun.Config{Endpoint: s.Endpoint, Region: osstest.Region, Bucket: osstest.Bucket, AccessKeyID: osstest.KeyID, AccessKeySecret: osstest.KeySecret}
}

func open(t *testing.T, c aliyun.Config) *aliyun.Store {
	t.Helper()
	s, err := aliyun.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	for name, change := range map[string]func(*aliyun.Config){
		"v4":     func(*aliyun.Config) {},
		"v1":     func(c *aliyun.Config) { c.Signature = "v1" },
		"prefix": func(c *aliyun.Config) { c.Prefix = "some/where/" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			osstest.TestStore(t, func(t *testing.T) oss.Store {
				c := config(osstest.Serve(t, ossd.Private))
				change(&c)
				return open(t, c)
			})
		})
	}
}

func TestFaults(t *testing.T) {
	osstest.TestReaderFaults(t, func(t *testing.T, srv *osstest.Server, n oss.Network) oss.Reader {
		c := config(srv)
		c.Network = n
		return open(t, c)
	})
}
