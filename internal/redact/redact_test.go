package redact

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func TestSecretIsFoundPlainAndEncoded(t *testing.T) {
	const secret = "s3cr3t-p4ssw0rd"
	r := New(secret)
	for _, text := range []string{
		secret,
		"a" + secret + "b",
		base64.StdEncoding.EncodeToString([]byte(secret)),
		base64.StdEncoding.EncodeToString([]byte("user:" + secret)),
		base64.StdEncoding.EncodeToString([]byte("u:" + secret)),
		base64.StdEncoding.EncodeToString([]byte("us:" + secret + "\n")),
		base64.URLEncoding.EncodeToString([]byte("??>" + secret)),
	} {
		got := r.String(text)
		if !strings.Contains(got, Mask) {
			t.Errorf("%q passed as %q", text, got)
		}
		// What is left must not decode to most of the secret.
		if strings.Contains(got, secret) {
			t.Errorf("%q still holds the secret", got)
		}
	}
}

func TestShortValuesStay(t *testing.T) {
	if got := New("true", "1", "").String("true 1"); got != "true 1" {
		t.Errorf("got %q", got)
	}
	var none *Redactor
	if got := none.String("x"); got != "x" {
		t.Errorf("got %q", got)
	}
}

func TestLinesOfAMultilineSecret(t *testing.T) {
	r := New("-----BEGIN KEY-----\nabcdefghij\n-----END KEY-----\n")
	if got := r.String("xx abcdefghij yy"); got != "xx "+Mask+" yy" {
		t.Errorf("got %q", got)
	}
}

// Whatever the pieces it is written in, the output is that of one write.
func TestWriterAcrossWrites(t *testing.T) {
	r := New("secret-one", "secret-two", "two-secret")
	text := "a secret-one b secret-two-secret c secre secret-on end"
	want := r.String(text)
	if strings.Contains(want, "secret-one") {
		t.Fatal("not masked at all")
	}
	for size := 1; size < len(text); size++ {
		var out bytes.Buffer
		w := r.Writer(&out)
		for i := 0; i < len(text); i += size {
			fmt.Fprint(w, text[i:min(i+size, len(text))])
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"secret-one", "secret-two"} {
			if strings.Contains(out.String(), s) {
				t.Errorf("pieces of %d: %q leaks", size, out.String())
			}
		}
		if !strings.HasSuffix(out.String(), " end") || !strings.HasPrefix(out.String(), "a "+Mask) {
			t.Errorf("pieces of %d: got %q", size, out.String())
		}
	}
}

func FuzzWriter(f *testing.F) {
	f.Add("hello hunter2-hunter2 bye", 3)
	f.Fuzz(func(t *testing.T, text string, size int) {
		const secret = "hunter2-hunter2"
		if size < 1 || size > 1000 {
			return
		}
		r := New(secret)
		var out bytes.Buffer
		w := r.Writer(&out)
		for i := 0; i < len(text); i += size {
			fmt.Fprint(w, text[i:min(i+size, len(text))])
		}
		w.Close()
		if strings.Contains(out.String(), secret) {
			t.Errorf("leaked in %q", out.String())
		}
	})
}
