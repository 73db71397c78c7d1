package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// maxPEM bounds what is read of a certificate or a key.
const maxPEM = 1 << 20

// file reads the path of a file and makes it absolute; check looks inside.
var file = textAs(fragment{MinLength: 1, form: "file"}, func(d *decoder, s string) (string, string) {
	if s == "" {
		return "", "names no file: write a path, or leave tls out"
	}
	return d.absolute(s), ""
})

// checkTLS sees that both files are given or none, and loads them.
func (d *decoder) checkTLS(c *Config) {
	whole, given := d.given["tls"]
	cert, key := !d.missing("tls.cert"), !d.missing("tls.key")
	if !cert || !key {
		missing := "cert"
		if cert {
			missing = "key"
		}
		if cert || key || given && len(d.faults) == 0 {
			d.fault(whole.value, "tls: %s is missing: a certificate and its key are given together", missing)
		}
		return
	}
	if c.TLS.Cert == "" || c.TLS.Key == "" {
		return // told already
	}
	d.checkPair(c.TLS)
}

// checkPair loads a certificate and its key as serve will.
func (d *decoder) checkPair(t TLS) {
	cert, certErr := readPEM(t.Cert)
	if certErr != nil {
		d.faultAt("tls.cert", "cannot read the certificate %s: %v", quote(t.Cert), certErr)
	}
	key, keyErr := readPEM(t.Key)
	if keyErr != nil {
		d.faultAt("tls.key", "cannot read the key %s: %v", quote(t.Key), keyErr)
	}
	if certErr != nil || keyErr != nil {
		return
	}
	if wrong := checkCertificate(cert, time.Now()); wrong != "" {
		d.faultAt("tls.cert", "%s %s", quote(t.Cert), wrong)
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		d.faultAt("tls.key", "%s %s", quote(t.Key), keyFault(key))
	}
}

// readPEM reads a regular file: a pipe could keep a server that reloads waiting.
func readPEM(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, reason(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	switch {
	case err != nil:
		return nil, reason(err)
	case len(data) > maxPEM:
		return nil, fmt.Errorf("it is longer than %d KiB", maxPEM>>10)
	}
	return data, nil
}

// checkCertificate says what is wrong with the first certificate in data, or "".
func checkCertificate(data []byte, now time.Time) string {
	block := pemBlock(data, func(kind string) bool { return kind == "CERTIFICATE" })
	if block == nil {
		if pemBlock(data, isKey) != nil {
			return "holds a key and no certificate: cert and key may have been swapped"
		}
		return "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Sprintf("holds no certificate that can be read: %v", err)
	}
	const day = "2006-01-02 15:04 MST"
	switch {
	case now.After(leaf.NotAfter):
		return "expired on " + leaf.NotAfter.UTC().Format(day) + ": renew it"
	case now.Before(leaf.NotBefore):
		return "is not valid before " + leaf.NotBefore.UTC().Format(day) + ": look at the clock, or take another one"
	}
	return ""
}

// keyFault says why the key in data is not the one of a certificate that is fine.
func keyFault(data []byte) string {
	block := pemBlock(data, isKey)
	switch {
	case block == nil:
		return "holds no key in PEM form (-----BEGIN PRIVATE KEY-----)"
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["Proc-Type"] != "":
		return "holds a key with a passphrase: take it off with `openssl pkey`"
	}
	for _, parse := range []func([]byte) error{
		func(b []byte) error { _, err := x509.ParsePKCS8PrivateKey(b); return err },
		func(b []byte) error { _, err := x509.ParsePKCS1PrivateKey(b); return err },
		func(b []byte) error { _, err := x509.ParseECPrivateKey(b); return err },
	} {
		if parse(block.Bytes) == nil {
			return "holds the key of another certificate: it must be the one that tls.cert was made with"
		}
	}
	return "holds no key that can be read"
}

func isKey(kind string) bool { return kind == "PRIVATE KEY" || strings.HasSuffix(kind, " PRIVATE KEY") }

// pemBlock is the first block in data whose kind is wanted.
func pemBlock(data []byte, wanted func(kind string) bool) *pem.Block {
	for {
		block, rest := pem.Decode(data)
		if block == nil || wanted(block.Type) {
			return block
		}
		data = rest
	}
}
