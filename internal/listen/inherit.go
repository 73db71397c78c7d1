package listen

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/coreos/go-systemd/v22/activation"
)

// inherited returns the sockets that a service manager has opened for this server,
// by the protocol of sd_listen_fds(3). It takes the variables out of the
// environment.
//
// The protocol names the process that they are for. That was the supervisor, which
// hands on what was meant for it and takes the name out, so what is here is ours.
func inherited() (list []net.Listener, err error) {
	if os.Getenv("LISTEN_FDS") == "" {
		return nil, nil
	}
	os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			for _, open := range list {
				open.Close()
			}
			return nil, fmt.Errorf("cannot serve the inherited socket %s: %w: hangup needs stream sockets (ListenStream=, Accept=no)", f.Name(), err)
		}
		if u, ok := l.(*net.UnixListener); ok {
			l = localListener{u} // the file is the service manager's
		}
		list = append(list, l)
	}
	return list, nil
}
