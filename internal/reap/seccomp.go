//go:build linux

package reap

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A systemCall is one as a seccomp filter sees it: its number means something only
// together with the architecture that it is made for.
type systemCall struct{ arch, number uint32 }

// prlimits are prlimit64 as the programs of a machine can call it, those for its
// 32-bit forerunner too. (The numbers are of the kernel's tables.)
var prlimits = map[string][]systemCall{
	"amd64": {{unix.AUDIT_ARCH_X86_64, 302}, {unix.AUDIT_ARCH_X86_64, 302 | x32}, {unix.AUDIT_ARCH_I386, 340}},
	"arm64": {{unix.AUDIT_ARCH_AARCH64, 261}, {unix.AUDIT_ARCH_ARM, 369}},
}

const x32 = 0x40000000 // what numbers of the x32 ABI are marked with

// keepLimitsOwn has this thread, and all that it will start, set no limits but their
// own. To the kernel it is enough to be the same user, and a server or a shim that may
// open no file, or use no more time, is as good as dead. The filter asks for the pid 0:
// no program can be told from another by its number. The kernel takes it from a thread
// that has set no_new_privs. On machines that are not in the table there is none.
func keepLimitsOwn() error {
	calls := prlimits[runtime.GOARCH]
	if len(calls) == 0 {
		return nil
	}
	// The fields of struct seccomp_data.
	const number, arch, pid = 0, 4, 16
	load := func(field uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: field}
	}
	skipUnless := func(is uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: is, Jf: skip}
	}
	answer := func(with uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: with}
	}
	var filter []unix.SockFilter
	for _, call := range calls {
		filter = append(filter,
			load(arch), skipUnless(call.arch, 6),
			load(number), skipUnless(call.number, 4),
			load(pid), skipUnless(0, 1),
			answer(unix.SECCOMP_RET_ALLOW),
			answer(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))
	}
	filter = append(filter, answer(unix.SECCOMP_RET_ALLOW))
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}
