package reap

import (
	"bytes"
	"strconv"

	"golang.org/x/sys/unix"
)

// A lister tells the children of a process, as the kernel knows them now.
type lister func(pid int) []int

// newLister returns a lister for one walk over a tree. Where the kernel keeps
// no children files, it takes its answers from one look at every process.
func newLister(self int) lister {
	if unix.Access(procPath(self, "task/"+strconv.Itoa(self)+"/children"), unix.F_OK) == nil {
		return children
	}
	return scan()
}

// children reads the children files of all threads of pid. Each is read to its
// end before anyone acts on it: a list that changes while it is read is slow.
func children(pid int) []int {
	var pids []int
	for _, tid := range numbers(procPath(pid, "task")) {
		for _, field := range bytes.Fields(read(procPath(pid, "task/"+strconv.Itoa(tid)+"/children"))) {
			if child, err := strconv.Atoi(string(field)); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// scan reads the parent of every process there is.
func scan() lister {
	of := make(map[int][]int)
	for _, pid := range numbers("/proc") {
		if ppid := parent(pid); ppid > 0 {
			of[ppid] = append(of[ppid], pid)
		}
	}
	return func(pid int) []int { return of[pid] }
}

// parent returns the parent of pid, or 0.
func parent(pid int) int {
	stat := read(procPath(pid, "stat"))
	// pid (name) state ppid …, and the name may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}

// survivor describes pid for a report.
func survivor(pid int) Survivor {
	s := Survivor{Pid: pid, State: '?', UID: -1}
	for line := range bytes.Lines(read(procPath(pid, "status"))) {
		fields := bytes.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch string(fields[0]) {
		case "State:":
			s.State = fields[1][0]
		case "Uid:":
			if uid, err := strconv.Atoi(string(fields[1])); err == nil {
				s.UID = uid
			}
		}
	}
	if wait := read(procPath(pid, "wchan")); string(wait) != "0" {
		s.Wait = string(wait[:min(len(wait), maxText)])
	}
	return s
}

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// read returns what a file in /proc holds, or nothing. It goes past os.ReadFile,
// which would try to poll each of these files.
func read(path string) []byte {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return readAll(fd)
}

func readAll(fd int) []byte {
	b := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return b
		}
		b = b[:len(b)+n]
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 4*cap(b)), b...)
		}
	}
}

// numbers lists the entries of a directory whose names are numbers.
func numbers(dir string) []int {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var list []int
	for _, name := range entries(fd) {
		if number, err := strconv.Atoi(name); err == nil {
			list = append(list, number)
		}
	}
	return list
}

// entries lists the names in a directory, from its beginning.
func entries(dir int) []string {
	var names []string
	unix.Seek(dir, 0, unix.SEEK_SET)
	b := make([]byte, 2048)
	for {
		n, err := unix.ReadDirent(dir, b)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
}
