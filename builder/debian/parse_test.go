package debian

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestParseControl(t *testing.T) {
	c, err := parseControl([]byte("Package: git\nVersion: 1:2.39.5-0\nArchitecture: amd64\nReplaces: git-core (<< 1:1.7),\n gitweb,\tx:any\nDescription: a\n b: c\n .\n\n"))
	if err != nil || c.name != "git" || c.version != "1:2.39.5-0" || c.arch != "amd64" || !slices.Equal(c.replaces, []string{"git-core", "gitweb", "x"}) {
		t.Errorf("%+v %v", c, err)
	}
	for _, bad := range []string{"", " continued\n", "no colon\n", "Package: ../x\n", "Package: A B\n"} {
		if c, err := parseControl([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}

func TestParseURIs(t *testing.T) {
	const sum = "58683d3e1bd1dcf9ef3bbd77ea7b9bd3bd4eb0b3ea5ed2b0a3a6d4ac5d2e9a10"
	pkgs, err := parseURIs([]byte("'http://m/z_1%3a2_amd64.deb' z1_1%3a2%2bx_amd64.deb 12 SHA256:" + sum + "\n'file:/m/a1_1_all.deb' a1_1_all.deb 3 SHA256:" + sum + "\n"))
	if err != nil || len(pkgs) != 2 || pkgs[0].Name != "a1" || pkgs[1].Version != "1:2+x" || pkgs[1].Size != 12 || pkgs[1].SHA256 != sum {
		t.Errorf("%+v %v", pkgs, err)
	}
	for bad, says := range map[string]string{
		"'http://u:p@m/x' x":                                           "//***@m",
		"'http://m/x' ../x1_1_all.deb 3 SHA256:" + sum:                 "file name",
		"'http://m/x' x1_%zz_all.deb 3 SHA256:" + sum:                  "file name",
		"'http://m/x' x1_1_all.deb 3 ":                                 "no SHA-256",
		"'http://m/x' x1_1_all.deb 99999999999999999999 SHA256:" + sum: "size",
	} {
		if _, err := parseURIs([]byte(bad)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: got %v, want %q", bad, err, says)
		}
	}
}

func TestComplaints(t *testing.T) {
	got := complaints("Reading package lists...\nW: Target Packages is configured twice\nE: Failed to fetch http://u:p@m/x  404\n" +
		"W: GPG error: http://m InRelease: NO_PUBKEY\nE: Some index files failed to download. They have been ignored.\nE: Failed to fetch http://u:p@m/x  404\n")
	want := []string{"Failed to fetch http://***@m/x  404", "GPG error: http://m InRelease: NO_PUBKEY"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if h := host("Failed to fetch http://u:p@mirror.example:80/x"); h != "mirror.example" {
		t.Errorf("host %q", h)
	}
}

func TestKeyStore(t *testing.T) {
	two := certificate("A") + certificate("B")
	s := keyStore([]byte(two))
	if !bytes.HasPrefix(s, []byte{0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2, 0, 0, 0, 2}) {
		t.Errorf("begins with % x", s[:12])
	}
	if !bytes.Equal(s, keyStore([]byte(two))) {
		t.Error("differs between runs")
	}
	// magic, version, count; per entry type, alias, time, type name, length, 6 bytes; checksum
	if want := 12 + 2*(4+42+8+7+4+6) + 20; len(s) != want {
		t.Errorf("%d bytes, want %d", len(s), want)
	}
}

func FuzzControl(f *testing.F) {
	f.Add([]byte("Package: a1\nReplaces: b, c:any (<< 2)\n d\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseControl(data)
		if err == nil && strings.ContainsAny(c.name, "/\n ") {
			t.Fatalf("name %q", c.name)
		}
	})
}

func FuzzURIs(f *testing.F) {
	f.Add([]byte("'http://m/z_1%3a2_amd64.deb' z1_1%3a2%2bx_amd64.deb 12 SHA256:58683d3e1bd1dcf9ef3bbd77ea7b9bd3bd4eb0b3ea5ed2b0a3a6d4ac5d2e9a10\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pkgs, err := parseURIs(data)
		for _, p := range pkgs {
			if err == nil && (strings.Contains(p.file, "/") || p.Name == "") {
				t.Fatalf("%+v", p)
			}
		}
	})
}
