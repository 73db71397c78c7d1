package e2e

import (
	"context"
	"encoding/xml"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/hangup/internal/proctest"
)

// deviations are the cases of h2spec that the server does not pass, and why that is right.
var deviations = map[string]string{
	"http2/6.5.3 Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE": "net/http takes a setting that comes twice in a frame for an attack, and ends the connection",

	"http2/8.1.2.2 Sends a HEADERS frame that contains the connection-specific header field":                       badRequest,
	"http2/8.1.2.2 Sends a HEADERS frame that contains the TE header field with any value other than \"trailers\"": badRequest,
}

const (
	badRequest = "net/http answers 400, which RFC 9113, section 8.1.1, allows"

	// That one is expected only without TLS.
	preface       = "http2/3.5 Sends invalid connection preface"
	prefaceReason = "what is not HTTP/2 is HTTP/1 on this port: it is answered 400 in that and closed, which h2spec cannot read"
)

// TestH2Spec: the server does what h2spec, a list of cases by the chapters of RFC 7540 and
// RFC 7541, wants of it, or there is a reason. Its requests are calls.
func TestH2Spec(t *testing.T) {
	proctest.OneLane(t, "frames are the same, whoever serves them")
	program := proctest.Build(t, "h2spec", "github.com/summerwind/h2spec/cmd/h2spec", "-modfile=tools/go.mod")
	for _, tr := range []transport{plainH2, secureH2} {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			settings := []string{telling}
			if tr.secure {
				settings = append(settings, withTLS)
			}
			s := start(t, python, settings...)
			cases := 0
			for name, fault := range s.h2spec(program, tr.secure) {
				cases++
				reason := deviations[name]
				if name == preface && !tr.secure {
					reason = prefaceReason
				}
				switch {
				case fault != "" && reason == "":
					t.Errorf("%s: %s", name, fault)
				case fault == "" && reason != "":
					t.Errorf("%s: passes; take it off the list", name)
				}
			}
			t.Logf("%d cases", cases)
			if cases < 140 {
				t.Errorf("only %d cases were run", cases)
			}
			for _, c := range s.calls() {
				if c.State != "ended" {
					t.Errorf("a call is left: %+v", c)
				}
			}
			s.unhurt()
		})
	}
}

// h2spec runs all cases, several at a time, and returns what is wrong with each.
func (s *server) h2spec(program string, secure bool) map[string]string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		found = map[string]string{}
	)
	for _, part := range []string{"generic", "hpack", "http2/3", "http2/4", "http2/5", "http2/6", "http2/7", "http2/8"} {
		all.Go(func() {
			report := filepath.Join(s.t.TempDir(), "report.xml")
			args := []string{"--host", host, "--port", port, "--path", "/execute/py/echo", "--strict", "--timeout", "2", "--junit-report", report, part}
			if secure {
				args = append(args, "--tls", "--insecure")
			}
			out, err := exec.CommandContext(ctx, program, args...).CombinedOutput() // its exit code says but that some failed
			results, readErr := readReport(report)
			if readErr != nil {
				s.t.Errorf("h2spec %s: %v, %v\n%s", part, err, readErr, out)
			}
			mu.Lock()
			defer mu.Unlock()
			for name, fault := range results {
				found[name] = fault
			}
		})
	}
	all.Wait()
	return found
}

// readReport reads a report of h2spec in the form of JUnit: what is wrong with each case.
func readReport(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var report struct {
		Cases []struct {
			Chapter string  `xml:"package,attr"`
			Title   string  `xml:"classname,attr"`
			Skipped *string `xml:"skipped"`
			Failure *string `xml:"failure"`
			Error   *string `xml:"error"`
		} `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(data, &report); err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, c := range report.Cases {
		fault := ""
		for verdict, text := range map[string]*string{"skipped": c.Skipped, "failure": c.Failure, "error": c.Error} {
			if text != nil {
				fault = verdict + " " + *text
			}
		}
		found[c.Chapter+" "+c.Title] = fault
	}
	return found, nil
}

// telling has a server log what net/http has to say, such as that a handler panicked.
const telling = "log: {level: debug}"

// unhurt makes sure that nothing in the server has panicked. It must be telling.
func (s *server) unhurt() {
	s.t.Helper()
	for _, r := range s.records("http") {
		if text, _ := r["message"].(string); strings.Contains(text, "panic") {
			s.t.Errorf("%s", text)
		}
	}
}
