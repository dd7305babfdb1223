package redact

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
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

func TestSecretsThatComeLater(t *testing.T) {
	var out bytes.Buffer
	r := New("first-secret")
	w := r.Writer(&out)
	r.Add("second \"secret\"", "line one of a file\nline two of a file\n")
	fmt.Fprint(w, `first-secret, second "secret", {"a": "second \"secret\""}, line two of a `)
	fmt.Fprint(w, "file")
	w.Close()
	if got, want := out.String(), `[MASKED], [MASKED], {"a": "[MASKED]"}, [MASKED]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestFind(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	values := []string{"short", "the-secret\n", "another-secret"}
	for text, want := range map[string]int{
		"": -1, "short": -1, "the-secre": -1, "a the-secret b": 1,
		long[:64<<10-4] + "another-secret": 2, long + "another-secret" + long: 2, long + "another-secre" + long: -1,
	} {
		for _, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text))} {
			if got, err := Find(r, values); got != want || err != nil {
				t.Errorf("%.20q of %d bytes: %d, %v; want %d", text, len(text), got, err, want)
			}
		}
	}
	if _, err := Find(iotest.ErrReader(io.ErrUnexpectedEOF), values); err == nil {
		t.Error("an error passed")
	}
}
