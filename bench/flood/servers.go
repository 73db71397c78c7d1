package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"example.com/hangup/internal/proc"
)

// The budget of hang-ups, as it is where the config does not say.
const (
	hangupsBurst     = 2000
	hangupsPerMinute = 600
)

// started is the key in counts of the workers that were started.
const started = "workers started"

// server is what is flooded.
type server struct {
	name, address, url string
	cmd                *exec.Cmd
	pid                int // whose memory counts; the processes below cmd use CPU, too
	metrics            bool
}

// startFloor starts a bare echo server.
func startFloor(dir string, secure bool) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{name: "floor", cmd: exec.Command(self, "-role", "floor")}
	if secure {
		s.cmd.Dir = dir // where the certificate is
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(errors.New("the floor did not start"), s.end())
	}
	s.pid = s.cmd.Process.Pid
	s.at(strings.TrimSpace(address), secure)
	return s, nil
}

func (s *server) at(address string, secure bool) {
	s.address, s.url = address, "http://"+address
	if secure {
		s.url = "https://" + address
	}
}

// beFloor is the bare echo server. It prints its address.
func beFloor() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: nil,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if strings.HasSuffix(r.URL.Path, "/hang") {
				<-r.Context().Done()
				return
			}
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(body) //nolint:errcheck // the caller is this program
		}),
	}
	if _, err := os.Stat("cert.pem"); err == nil {
		return server.ServeTLS(l, "cert.pem", "key.pem")
	}
	return server.Serve(l)
}

// startHangup starts the program with a worker that is this one.
func startHangup(dir string, secure bool) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	yaml := fmt.Sprintf("listen: [127.0.0.1:0]\nlimits: {hangups: {burst: %d, per_minute: %d}}\n"+
		"workloads:\n  work: {kind: worker, command: [%q, -role, worker], workers: 4}\n", hangupsBurst, hangupsPerMinute, self)
	if secure {
		yaml += "tls: {cert: cert.pem, key: key.pem}\n"
	}
	file := filepath.Join(dir, "hangup.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o644); err != nil {
		return nil, err
	}
	s := &server{name: "hangup", metrics: true, cmd: exec.Command(*program, "serve", "--config", file)}
	log, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w (make build makes it)", s.cmd.Path, err)
	}
	if err := s.ready(log, secure); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

// ready waits until the server's workers are.
func (s *server) ready(log io.Reader, secure bool) error {
	var first struct {
		Msg    string
		Listen []string
		Pid    int
	}
	for lines := bufio.NewScanner(log); first.Msg != "serving"; {
		if !lines.Scan() {
			return errors.New("the server did not start")
		}
		json.Unmarshal(lines.Bytes(), &first) //nolint:errcheck // other lines are no matter
	}
	go io.Copy(io.Discard, log) //nolint:errcheck // ends with the server
	s.pid = first.Pid
	s.at(first.Listen[0], secure)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := s.get("/readyz"); err == nil {
			return nil
		}
	}
	return errors.New("the server is not ready")
}

func (s *server) get(path string) ([]byte, error) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	reply, err := client.Get(s.url + path)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return nil, errors.New(reply.Status)
	}
	return io.ReadAll(reply.Body)
}

// counts are the calls that have ended, by outcome, and the workers started; nil
// where the server does not tell. A worker that was started lives, or its tree was
// stopped.
func (s *server) counts() (map[string]float64, error) {
	if !s.metrics {
		return nil, nil
	}
	body, err := s.get("/metrics")
	if err != nil {
		return nil, err
	}
	counts := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue // a comment
		}
		name, labels, _ := strings.Cut(series, "{")
		switch name {
		case "hangup_calls_total":
			_, outcome, _ := strings.Cut(labels, `outcome="`)
			outcome, _, _ = strings.Cut(outcome, `"`)
			counts[outcome] += n
		case "hangup_kill_seconds_count", "hangup_workers":
			counts[started] += n
		}
	}
	return counts, nil
}

// end stops the server and makes sure that nothing of it is left.
func (s *server) end() error {
	all := proc.Look(s.cmd.Process.Pid)
	s.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	s.cmd.Wait()                          //nolint:errcheck // the floor ends by the signal
	for _, p := range all {
		if p.There() {
			return fmt.Errorf("left behind: %d %s", p.Pid, p.Command)
		}
	}
	return nil
}

// usage is what a server has used so far, and its memory now.
type usage struct {
	cpu    time.Duration
	memory int64
}

func (s *server) used() usage {
	return usage{cpu: cpu(s.cmd.Process.Pid), memory: memory(s.pid)}
}

// watchMemory looks at the memory until the function is called that returns the most.
func (s *server) watchMemory() (most func() int64) {
	stop, result := make(chan struct{}), make(chan int64)
	go func() {
		peak := int64(0)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			peak = max(peak, memory(s.pid))
			select {
			case <-tick.C:
			case <-stop:
				result <- peak
				return
			}
		}
	}()
	return func() int64 { close(stop); return <-result }
}

// memory is what a process has resident, in bytes.
func memory(pid int) int64 {
	statm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// cpu is the time that a process and all that is, or was and has been waited for,
// below it have used. The kernel counts it in ticks of 10 ms.
func cpu(root int) time.Duration {
	var ticks int64
	for _, p := range proc.Look(root) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.Pid) + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		const utime, cstime = 14 - 3, 17 - 3
		for _, field := range fields[utime : cstime+1] {
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// writeCertificate writes a certificate of this machine's own and its key.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{{127, 0, 0, 1}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600),
	)
}
