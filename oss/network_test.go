package oss_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/kuroko-faas/kuroko/oss"
)

// raw answers every connection with the same bytes and closes it.
func raw(t *testing.T, answer string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			http.ReadRequest(bufio.NewReader(c))
			io.WriteString(c, answer)
			c.Close()
		}
	}()
	return "http://" + ln.Addr().String()
}

func TestAnswersThatLie(t *testing.T) {
	whole := oss.GetOptions{}
	part := oss.GetOptions{Offset: 2, Length: 3}
	for name, c := range map[string]struct {
		opts   oss.GetOptions
		answer string
		want   string // the body, or what the error says
	}{
		"good":                   {whole, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		"chunked":                {whole, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "hello"},
		"chunked, cut":           {whole, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "unexpected EOF"},
		"no length":              {whole, "HTTP/1.1 200 OK\r\n\r\nhello", "neither how long"},
		"HTTP/1.0, no length":    {whole, "HTTP/1.0 200 OK\r\n\r\nhello", "neither how long"},
		"chunked, ranged":        {part, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "llo"},
		"chunked, ends before":   {oss.GetOptions{Offset: 9}, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "no such range"},
		"part":                   {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 2-4/5\r\nContent-Length: 3\r\n\r\nllo", "llo"},
		"part, size unknown":     {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 2-4/*\r\nContent-Length: 3\r\n\r\nllo", "llo"},
		"another part":           {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 1-3/5\r\nContent-Length: 3\r\n\r\nell", "other bytes"},
		"larger part":            {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 2-5/9\r\nContent-Length: 4\r\n\r\nllo!", "other bytes"},
		"smaller part":           {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 2-3/9\r\nContent-Length: 2\r\n\r\nll", "other bytes"},
		"part of another length": {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 2-4/5\r\nContent-Length: 2\r\n\r\nll", "other bytes"},
		"part without range":     {part, "HTTP/1.1 206 x\r\nContent-Length: 3\r\n\r\nllo", "Content-Range"},
		"part, negative":         {part, "HTTP/1.1 206 x\r\nContent-Range: bytes 2--4/5\r\nContent-Length: 3\r\n\r\nllo", "Content-Range"},
		"part, not asked":        {whole, "HTTP/1.1 206 x\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello", "unexpected answer 206"},
		"no HTTP":                {whole, "SSH-2.0-x\r\n", "malformed HTTP"},
		"nothing":                {whole, "", "EOF"},
		"checksum of nonsense":   {whole, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Oss-Hash-Crc64ecma: x\r\n\r\nhello", "hello"},
		"long message":           {whole, "HTTP/1.1 400 x\r\nContent-Type: text/xml\r\nConnection: close\r\n\r\n<Error><Code>Bad</Code><Message>" + strings.Repeat("a\x1b[31m\n", 1000) + "</Message></Error>", "answered 400"},
		"redirect to itself":     {whole, "HTTP/1.1 302 x\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n", "redirects to"},
	} {
		t.Run(name, func(t *testing.T) {
			r := openHTTP(t, raw(t, c.answer), oss.Network{})
			got, _, err := oss.ReadAll(t.Context(), r, "k", c.opts, 100)
			if err != nil {
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				if text := err.Error(); len(text) > 600 || strings.ContainsAny(text, "\n\x1b") {
					t.Errorf("the message is not one short line: %q", text)
				}
				return
			}
			if string(got) != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRedirectWithinTheHost(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/old/k" {
			http.Redirect(w, r, "/new/k", http.StatusMovedPermanently)
			return
		}
		io.WriteString(w, r.URL.Path)
	}))
	defer srv.Close()
	got, _, err := oss.ReadAll(t.Context(), openHTTP(t, srv.URL+"/old", oss.Network{}), "k", oss.GetOptions{}, 100)
	if err != nil || string(got) != "/new/k" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRequestHasNoCredentialsAndNoCompression(t *testing.T) {
	var seen http.Header
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen = r.Header }))
	defer srv.Close()
	if _, _, err := oss.ReadAll(t.Context(), openHTTP(t, srv.URL, oss.Network{}), "k", oss.GetOptions{}, 100); err != nil {
		t.Fatal(err)
	}
	for _, h := range []string{"Authorization", "Cookie", "Accept-Encoding", "X-Oss-Security-Token"} {
		if v := seen.Get(h); v != "" {
			t.Errorf("%s: %q", h, v)
		}
	}
	if seen.Get("User-Agent") != "kuroko" {
		t.Errorf("User-Agent: %q", seen.Get("User-Agent"))
	}
}

func TestNewHTTPRefuses(t *testing.T) {
	for _, base := range []string{"", "host/path", "ftp://host", "https://", "https://user:hush@host/x", "https://host/?token=hush", "https://host/#x", "http://[::1", "https:host", "https://user:hush@ho st/"} {
		_, err := oss.NewHTTP(base, oss.HTTPOptions{})
		if err == nil {
			t.Errorf("%q was taken", base)
		} else if strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: the message has the secret: %v", base, err)
		}
	}
	r := openHTTP(t, "https://host/a/b//", oss.Network{})
	if r.Base() != "https://host/a/b" {
		t.Errorf("base %q", r.Base())
	}
}

func TestUntrustedCertificate(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	_, err := openHTTP(t, srv.URL, oss.Network{}).Get(t.Context(), "k", oss.GetOptions{})
	var u *oss.Unavailable
	if err == nil || errors.As(err, &u) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v, want an error about the certificate that is not tried again", err)
	}
	known := oss.Network{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	if got, _, err := oss.ReadAll(t.Context(), openHTTP(t, srv.URL, known), "k", oss.GetOptions{}, 100); err != nil || string(got) != "hello" {
		t.Errorf("with its authority: got %q, %v", got, err)
	}
	// A plain server where TLS is expected.
	plain := httptest.NewServer(nil)
	defer plain.Close()
	_, err = openHTTP(t, strings.Replace(plain.URL, "http", "https", 1), oss.Network{}).Get(t.Context(), "k", oss.GetOptions{})
	if err == nil || errors.As(err, &u) {
		t.Errorf("got %v, want an error that is not tried again", err)
	}
}

func TestTimeouts(t *testing.T) {
	// A listener that accepts in the kernel only: TLS hangs.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = openHTTP(t, "https://"+ln.Addr().String(), oss.Network{TLS: 20 * time.Millisecond}).Get(t.Context(), "k", oss.GetOptions{})
	wantUnavailable(t, err)
	// A dial that never comes back.
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		return (&net.Dialer{Deadline: time.Unix(1, 0)}).DialContext(ctx, network, addr)
	}
	_, err = openHTTP(t, "http://127.0.0.1:1", oss.Network{DialContext: dial}).Get(t.Context(), "k", oss.GetOptions{})
	wantUnavailable(t, err)
}

func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	var u *oss.Unavailable
	if !errors.As(err, &u) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want Unavailable that is not the caller's deadline", err)
	}
}

// TestStalledUpload: a server that stops taking bytes ends the request.
func TestStalledUpload(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			defer c.Close()
			<-t.Context().Done()
		}
	}()
	n := oss.Network{Idle: 20 * time.Millisecond, Header: 20 * time.Millisecond}
	req, err := http.NewRequestWithContext(t.Context(), "PUT", "http://"+ln.Addr().String(), strings.NewReader(strings.Repeat("x", 64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.Transport().RoundTrip(req)
	if err == nil || !strings.Contains(err.Error(), "stood still") {
		t.Errorf("got %v, want that the transfer stood still", err)
	}
	if t.Context().Err() != nil {
		t.Error("the caller's context ended")
	}
}

func TestProxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "through the proxy to ", r.URL) }))
	defer proxy.Close()
	const want = "through the proxy to http://oss.invalid/k"
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := oss.ReadAll(t.Context(), openHTTP(t, "http://oss.invalid", oss.Network{Proxy: http.ProxyURL(u)}), "k", oss.GetOptions{}, 100); err != nil || string(got) != want {
		t.Errorf("given: got %q, %v", got, err)
	}
	// net/http reads the environment once, so another process has to.
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyChild$", "-test.v")
	cmd.Env = []string{"HTTP_PROXY=" + proxy.URL, "KUROKO_TEST_PROXY_CHILD=1"}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), want) {
		t.Errorf("from the environment: got %s, %v", out, err)
	}
}

// TestProxyChild is a part of TestProxy.
func TestProxyChild(t *testing.T) {
	if os.Getenv("KUROKO_TEST_PROXY_CHILD") == "" {
		t.Skip("runs as a child of TestProxy")
	}
	got, _, err := oss.ReadAll(t.Context(), openHTTP(t, "http://oss.invalid", oss.Network{}), "k", oss.GetOptions{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(string(got))
}

func FuzzCheckKey(f *testing.F) {
	for _, k := range []string{"a", "v1/chan/acme/stable.json", "", ".", "a//b", "a\\b", "中/+ %"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if oss.CheckKey(key) != nil {
			return
		}
		u := &url.URL{Scheme: "http", Host: "h", Path: "/" + key}
		if path := u.JoinPath().Path; path != "/"+key { // which cleans it, as proxies do
			t.Errorf("a URL turns key %q into %q", key, path)
		}
	})
}
