package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode is who may connect: to connect is to write.
const socketMode = 0o600

// socketFile is a unix socket in its directory, which is held open: whatever
// happens to the path meanwhile, it is looked at, made and removed in one place.
type socketFile struct {
	dir    *os.File
	path   string
	name   string // in dir
	device uint64 // what it is, once it is made
	inode  uint64
}

// openUnix listens on a unix socket that only this user can connect to. A socket that
// nobody listens on any more is replaced; anything else at path, a symbolic link
// too, is left as it is.
func openUnix(ctx context.Context, path string) (net.Listener, error) {
	f := &socketFile{path: path, name: filepath.Base(path)}
	fail := func(err error) (net.Listener, error) {
		f.dir.Close()
		return nil, fmt.Errorf("cannot listen on unix:%s: %w", path, err)
	}
	var err error
	if f.dir, err = os.Open(filepath.Dir(path)); err != nil {
		return fail(fmt.Errorf("%w: make the directory first", err))
	}
	defer f.lock(ctx)()
	if err := f.clear(); err != nil {
		return fail(err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = restrict(int(fd)) }), err)
	}}
	l, err := lc.Listen(ctx, "unix", f.reach())
	if err != nil {
		var sys *os.SyscallError
		if errors.As(err, &sys) {
			err = sys.Err // the path in it is not the one that anybody knows
		}
		return fail(err)
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // it would go by the path
	if err := restrictFile(f.dir, f.name); err != nil {
		u.Close()
		return fail(err)
	}
	if f.device, f.inode, err = f.stat(); err != nil {
		u.Close()
		return fail(err)
	}
	return &unixListener{localListener{u}, f}, nil
}

// lock has one of two servers that find an old socket at a time come second. Anyone
// who may read the directory can hold it, so it is not waited for longer than a server
// needs; then, and where the file system has no locks, it is left to chance.
func (f *socketFile) lock(ctx context.Context) (unlock func()) {
	const every, tries = 10 * time.Millisecond, 20
	for range tries {
		if unix.Flock(int(f.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) != unix.EWOULDBLOCK {
			break
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
		}
	}
	return func() { _ = unix.Flock(int(f.dir.Fd()), unix.LOCK_UN) }
}

// clear makes room for the socket.
func (f *socketFile) clear() error {
	var st unix.Stat_t
	err := unix.Fstatat(int(f.dir.Fd()), f.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return errors.New("it is a symbolic link, and none is followed: name the place that it leads to, or remove it")
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return errors.New("there is a file in its place that is no socket: remove it, or choose another path")
	}
	c, err := net.Dial("unix", f.reach())
	switch {
	case err == nil:
		c.Close()
		return errors.New("another program does; stop it, or change `listen`")
	case errors.Is(err, unix.EAGAIN): // its queue is full
		return errors.New("another program does; stop it, or change `listen`")
	case errors.Is(err, unix.ECONNREFUSED): // left behind
		if err := unix.Unlinkat(int(f.dir.Fd()), f.name, 0); err != nil && err != unix.ENOENT {
			return fmt.Errorf("cannot remove the socket that was left there: %w", err)
		}
		return nil
	default:
		return errors.New("there is a socket that cannot be tried: remove it, or choose another path")
	}
}

func (f *socketFile) stat() (device, inode uint64, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(int(f.dir.Fd()), f.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return uint64(st.Dev), st.Ino, err
}

// there tells whether the file is still the one that was made.
func (f *socketFile) there() bool {
	device, inode, err := f.stat()
	return err == nil && device == f.device && inode == f.inode
}

// remove removes the socket, if it is still the one that was made. That comes before
// the socket is closed: until then nobody else can have its inode.
func (f *socketFile) remove() {
	if f.there() {
		_ = unix.Unlinkat(int(f.dir.Fd()), f.name, 0) // the next start clears what is left
	}
	f.dir.Close()
}

// unixListener removes its file when it is closed.
type unixListener struct {
	localListener
	file *socketFile
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: l.file.path} }

func (l *unixListener) Close() error {
	l.file.remove()
	return l.localListener.Close()
}

// localListener tells who connects: RemoteAddr of its connections is uid: and a number.
type localListener struct{ *net.UnixListener }

func (l localListener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &localConn{UnixConn: c, peer: peerOf(c)}, nil
}

// localConn is a connection of a user of this machine.
type localConn struct {
	*net.UnixConn
	peer peer
}

func (c *localConn) RemoteAddr() net.Addr { return c.peer }

// peer is a user of this machine as an address.
type peer string

func (peer) Network() string  { return "unix" }
func (p peer) String() string { return string(p) }

// peerOf is who connected, as the kernel knows it.
func peerOf(c *net.UnixConn) peer {
	uid := -1
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { uid = peerUID(int(fd)) })
	}
	if uid < 0 {
		return "local"
	}
	return peer("uid:" + strconv.Itoa(uid))
}
