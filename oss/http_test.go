package oss_test

import (
	"bytes"
	"testing"

	"github.com/kuroko-faas/kuroko/oss"
	"github.com/kuroko-faas/kuroko/oss/aliyun"
	"github.com/kuroko-faas/kuroko/oss/ossd"
	"github.com/kuroko-faas/kuroko/oss/osstest"
)

func openHTTP(t *testing.T, base string, n oss.Network) *oss.HTTP {
	t.Helper()
	r, err := oss.NewHTTP(base, oss.HTTPOptions{Network: n})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fill stores objects as a publisher does.
func fill(t *testing.T, srv *osstest.Server, prefix string, objects map[string]string) oss.Store {
	t.Helper()
	s, err := aliyun.New(aliyun.Config{Endpoint: srv.Endpoint, Region: osstest.Region, Bucket: osstest.Bucket, Prefix: prefix, AccessKeyID: osstest.KeyID, AccessKeySecret: osstest.KeySecret})
	if err != nil {
		t.Fatal(err)
	}
	for key, body := range objects {
		if err := s.Put(t.Context(), key, bytes.NewBufferString(body).Bytes(), oss.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestHTTPReader(t *testing.T) {
	for name, prefix := range map[string]string{"bucket": "", "prefix": "a prefix+/"} {
		t.Run(name, func(t *testing.T) {
			osstest.TestReader(t, func(t *testing.T, objects map[string]string) oss.Reader {
				srv := osstest.Serve(t, ossd.PublicRead)
				fill(t, srv, prefix, objects)
				base := srv.Base
				if prefix != "" {
					base += "/a%20prefix%2B/"
				}
				return openHTTP(t, base, oss.Network{})
			})
		})
	}
}

func TestRetryStore(t *testing.T) {
	osstest.TestStore(t, func(t *testing.T) oss.Store {
		return oss.Retry(fill(t, osstest.Serve(t, ossd.Private), "", nil), oss.RetryOptions{})
	})
}

func TestHTTPFaults(t *testing.T) {
	osstest.TestReaderFaults(t, func(t *testing.T, srv *osstest.Server, n oss.Network) oss.Reader {
		return openHTTP(t, srv.Base, n)
	})
}
