package listen

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"example.com/hangup/internal/config"
	"example.com/hangup/internal/event"
)

// lookEvery is how often a handshake looks whether the files have changed.
const lookEvery = 10 * time.Second

// certificate is the server's certificate, as the files have it.
type certificate struct {
	files  config.TLS
	emit   event.Sink
	config *tls.Config
	pair   atomic.Pointer[tls.Certificate]

	mu    sync.Mutex // held by the handshake that looks
	every time.Duration
	next  time.Time // when to look again
	seen  [2]state  // of the files, as they were tried last
}

// state tells one version of a file from the next.
type state struct {
	size     int64
	modified time.Time
}

// loadCertificate loads the certificate that files name.
func loadCertificate(files config.TLS, emit event.Sink) (*certificate, error) {
	c := &certificate{files: files, emit: emit, every: lookEvery, next: time.Now().Add(lookEvery), seen: look(files)}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.config = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: c.get,
	}
	return c, nil
}

func look(files config.TLS) (seen [2]state) {
	for i, path := range []string{files.Cert, files.Key} {
		if info, err := os.Stat(path); err == nil {
			seen[i] = state{info.Size(), info.ModTime()}
		}
	}
	return seen
}

func (c *certificate) load() error {
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return fmt.Errorf("cannot use the certificate %s with the key %s: %w", c.files.Cert, c.files.Key, err)
	}
	c.pair.Store(&pair)
	return nil
}

// get is [tls.Config.GetCertificate]. It takes up files that have changed; while they
// do not fit, as between the writing of one and of the other, the old pair stays.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.mu.TryLock() {
		if now := time.Now(); now.After(c.next) {
			c.next = now.Add(c.every)
			c.renew(now)
		}
		c.mu.Unlock()
	}
	return c.pair.Load(), nil
}

func (c *certificate) renew(now time.Time) {
	seen := look(c.files)
	if seen == c.seen {
		return
	}
	c.seen = seen
	if err := c.load(); err != nil {
		c.emit(event.Trouble{
			What: "the certificate has changed and cannot be used; the one before it still is", Err: err,
			Remedy: "put a certificate and its key there; they are looked at again when they change", At: now,
		})
		return
	}
	c.emit(event.CertificateTaken{File: c.files.Cert, Expires: c.pair.Load().Leaf.NotAfter, At: now})
}
