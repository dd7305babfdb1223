// Package osstest holds the behaviour suites that every implementation of
// oss.Reader and oss.Store passes, and a server to run them against.
package osstest

import (
	"net/http/httptest"
	"testing"

	"github.com/kuroko-faas/kuroko/oss/ossd"
)

// What [Serve]'s servers know.
const (
	Bucket    = "test-bucket"
	Region    = "cn-hangzhou"
	KeyID     = "test-id"
	KeySecret = "test-secret"
	// ReaderID is a second key, with the same secret, that may only read.
	ReaderID = "test-reader"
)

// Server is an object store on loopback, in an empty folder.
type Server struct {
	*ossd.Server
	// Endpoint is http://127.0.0.1:port.
	Endpoint string
	// Base is where the bucket's objects are read over plain HTTP.
	Base string
	// Stop ends it before the test does: nobody answers any more.
	Stop func()
}

// Serve starts a server that ends with the test. Its bucket is [Bucket]; with
// an empty acl it has none.
func Serve(t testing.TB, acl ossd.ACL) *Server {
	t.Helper()
	s, err := ossd.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.Region = Region
	s.AddKey(ossd.Key{ID: KeyID, Secret: KeySecret})
	s.AddKey(ossd.Key{ID: ReaderID, Secret: KeySecret, ReadOnly: true})
	if acl != "" {
		if err := s.CreateBucket(Bucket, acl); err != nil {
			t.Fatal(err)
		}
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return &Server{Server: s, Endpoint: srv.URL, Base: srv.URL + "/" + Bucket, Stop: srv.Close}
}

// Fill stores objects in [Bucket], whatever its ACL and the faults.
func Fill(t testing.TB, s *Server, objects map[string]string) {
	t.Helper()
	for key, body := range objects {
		if err := s.PutObject(Bucket, key, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
}
