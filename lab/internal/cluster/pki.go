package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki writes the lab's authority, certificates, service account keys and
// kubeconfigs to dir. They are good for a year and for this lab only.
type pki struct {
	dir, server string
	caCert      *x509.Certificate
	caKey       crypto.Signer
	caPEM       []byte
	now         time.Time
}

// writePKI makes everything anew. addrs are the API server's addresses, server
// the one in the kubeconfigs.
func writePKI(dir, server string, addrs []string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	p := &pki{dir: dir, server: server, now: now}
	var err error
	if p.caKey, err = p.key("ca.key"); err != nil {
		return err
	}
	ca := p.template("lab-ca", nil)
	ca.IsCA, ca.BasicConstraintsValid, ca.ExtKeyUsage = true, true, nil // no limit on what it signs
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	if p.caCert, p.caPEM, err = p.sign("ca.crt", ca, ca, p.caKey.Public()); err != nil {
		return err
	}
	sa, err := p.key("sa.key")
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return err
	}
	if err := p.pem("sa.pub", "PUBLIC KEY", pub); err != nil {
		return err
	}
	names := []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if err := p.server1("apiserver", p.template("kube-apiserver", nil), append([]string{"127.0.0.1", apiService}, addrs...), names); err != nil {
		return err
	}
	if err := p.server1("kubelet", p.template("system:node:"+nodeName, []string{"system:nodes"}), addrs, []string{nodeName}); err != nil {
		return err
	}
	for name, t := range map[string]*x509.Certificate{
		"admin":     p.template("admin", []string{"system:masters"}),
		"kcm":       p.template("system:kube-controller-manager", nil),
		"scheduler": p.template("system:kube-scheduler", nil),
		"proxy":     p.template("system:kube-proxy", nil),
		"coredns":   p.template("coredns", []string{"system:masters"}),
	} {
		if err := p.issue(name, t); err != nil {
			return err
		}
	}
	return nil
}

// server1 issues a certificate that also proves a server's addresses and names.
func (p *pki) server1(name string, t *x509.Certificate, addrs, names []string) error {
	t.DNSNames = names
	for _, a := range addrs {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(a))
	}
	t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	return p.issue(name, t)
}

// issue writes NAME.crt, NAME.key and NAME.kubeconfig.
func (p *pki) issue(name string, t *x509.Certificate) error {
	k, err := p.key(name + ".key")
	if err != nil {
		return err
	}
	_, cert, err := p.sign(name+".crt", t, p.caCert, k.Public())
	if err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(p.dir, name+".key"))
	if err != nil {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	conf := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: %s
  user: {client-certificate-data: %s, client-key-data: %s}
contexts:
- name: lab
  context: {cluster: lab, user: %s}
current-context: lab
`, p.server, b64(p.caPEM), name, b64(cert), b64(key), name)
	return os.WriteFile(filepath.Join(p.dir, name+".kubeconfig"), []byte(conf), 0o600)
}

func (p *pki) template(cn string, orgs []string) *x509.Certificate {
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: cn, Organization: orgs},
		NotBefore:   p.now.Add(-time.Hour),
		NotAfter:    p.now.Add(365 * 24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func (p *pki) sign(file string, t, parent *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, []byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	t.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, p.caKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), p.pem(file, "CERTIFICATE", der)
}

func (p *pki) key(file string) (crypto.Signer, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, err
	}
	return k, p.pem(file, "EC PRIVATE KEY", der)
}

func (p *pki) pem(file, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(p.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
