package proctest

import "syscall"

// dieWithParent has a process killed when the thread ends that started it.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// inGroup has a process started in the cgroup whose directory is open as dir.
func inGroup(attr *syscall.SysProcAttr, dir int) { attr.UseCgroupFD, attr.CgroupFD = true, dir }
