package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writePair makes a certificate and its key: name.pem and name.key in dir.
func writePair(t *testing.T, dir, name string, from, to time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, NotBefore: from, NotAfter: to,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+".pem"), block("CERTIFICATE", cert))
	writeFile(t, filepath.Join(dir, name+".key"), block("PRIVATE KEY", secret))
}

func block(kind string, data []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
}

func writeFile(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCertificate(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	writePair(t, dir, "good", now.Add(-time.Hour), now.Add(time.Hour))
	writePair(t, dir, "other", now.Add(-time.Hour), now.Add(time.Hour))
	writePair(t, dir, "old", time.Unix(0, 0), time.Date(2001, 1, 2, 3, 4, 5, 0, time.UTC))
	writePair(t, dir, "early", now.Add(time.Hour), now.Add(2*time.Hour))
	writeFile(t, filepath.Join(dir, "text"), "hello\n")
	writeFile(t, filepath.Join(dir, "broken.pem"), block("CERTIFICATE", []byte("no certificate")))
	writeFile(t, filepath.Join(dir, "broken.key"), block("PRIVATE KEY", []byte("no key")))
	writeFile(t, filepath.Join(dir, "locked.key"), block("ENCRYPTED PRIVATE KEY", []byte("no key")))

	for _, c := range []struct{ cert, key, want string }{
		{"good.pem", "good.key", ""},
		{"missing.pem", "good.key", `2:13: tls.cert: cannot read the certificate "` + dir + `/missing.pem": no such file or directory`},
		{"good.pem", "missing.key", "tls.key: cannot read the key"},
		{"text", "good.key", "tls.cert: " + `"` + dir + `/text" holds no certificate in PEM form`},
		{"good.key", "good.pem", "holds a key and no certificate: cert and key may have been swapped"},
		{"broken.pem", "good.key", "holds no certificate that can be read: x509: "},
		{"old.pem", "old.key", `old.pem" expired on 2001-01-02 03:04 UTC: renew it`},
		{"early.pem", "early.key", `early.pem" is not valid before `},
		{"good.pem", "text", "tls.key: " + `"` + dir + `/text" holds no key in PEM form`},
		{"good.pem", "broken.key", "holds no key that can be read"},
		{"good.pem", "locked.key", "holds a key with a passphrase"},
		{"good.pem", "other.key", "holds the key of another certificate"},
	} {
		_, err := Parse(filepath.Join(dir, "hangup.yaml"), []byte(work+"tls: {cert: "+c.cert+", key: "+c.key+"}\n"))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s, %s: %v", c.cert, c.key, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")):
			t.Errorf("%s, %s:\ngot  %v\nwant %s", c.cert, c.key, err, c.want)
		}
	}

}

func TestCertificateUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	dir, now := t.TempDir(), time.Now()
	writePair(t, dir, "hidden", now.Add(-time.Hour), now.Add(time.Hour))
	if err := os.Chmod(filepath.Join(dir, "hidden.key"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := Parse(filepath.Join(dir, "hangup.yaml"), []byte(work+"tls: {cert: hidden.pem, key: hidden.key}\n"))
	if err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("an unreadable key: %v", err)
	}
}
