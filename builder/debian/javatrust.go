package debian

import (
	"bytes"
	"crypto/sha1" // the format's own checksum; nothing is trusted because of it
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"path"
	"unicode/utf16"
)

// javaTrust writes Java's trust store where the image holds a Java runtime.
// Debian makes it with a program in Java when ca-certificates-java is
// configured; without it every TLS connection fails.
func (t *tree) javaTrust(certificates []byte) error {
	const store = "etc/ssl/certs/java/cacerts"
	for name, n := range t.nodes {
		if under(name, "usr/lib/jvm") && path.Base(name) == "cacerts" && n.link == "/"+store {
			return t.setFile(store, 0o644, keyStore(certificates))
		}
	}
	return nil
}

// keyStore writes PEM certificates as a Java key store of the old JKS format,
// which every Java reads. Its password is the customary one; it protects
// nothing, because certificates are public.
func keyStore(certificates []byte) []byte {
	const (
		magic    = 0xFEEDFEED
		version  = 2
		trusted  = 2 // entry type
		password = "changeit"
		salt     = "Mighty Aphrodite" // in the format's definition
	)
	var ders [][]byte
	for rest := certificates; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type == "CERTIFICATE" {
			ders = append(ders, b.Bytes)
		}
	}
	var out bytes.Buffer
	u32 := func(v uint32) { out.Write(binary.BigEndian.AppendUint32(nil, v)) }
	text := func(s string) {
		out.Write(binary.BigEndian.AppendUint16(nil, uint16(len(s))))
		out.WriteString(s)
	}
	u32(magic)
	u32(version)
	u32(uint32(len(ders)))
	for _, der := range ders {
		sum := sha1.Sum(der)
		u32(trusted)
		text(hex.EncodeToString(sum[:])) // alias
		out.Write(make([]byte, 8))       // time of creation: none
		text("X.509")
		u32(uint32(len(der)))
		out.Write(der)
	}
	h := sha1.New()
	for _, c := range utf16.Encode([]rune(password)) {
		h.Write(binary.BigEndian.AppendUint16(nil, c))
	}
	h.Write([]byte(salt))
	h.Write(out.Bytes())
	out.Write(h.Sum(nil))
	return out.Bytes()
}
