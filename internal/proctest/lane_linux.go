package proctest

import "syscall"

// dieWithParent has a process killed when the thread ends that started it.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
