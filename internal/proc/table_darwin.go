package proc

import (
	"time"

	"golang.org/x/sys/unix"
)

// table lists every process of the machine.
func table() []Process {
	all, err := unix.SysctlKinfoProcSlice("kern.proc.all")
	if err != nil {
		return nil
	}
	const zombie = 5 // SZOMB
	list := make([]Process, 0, len(all))
	for i := range all {
		p := Process{
			Pid: int(all[i].Proc.P_pid), Parent: int(all[i].Eproc.Ppid), State: "R",
			Started: all[i].Proc.P_starttime.Nano() / int64(time.Microsecond),
			Command: unix.ByteSliceToString(all[i].Proc.P_comm[:]),
		}
		p.Session, _ = unix.Getsid(p.Pid)
		if all[i].Proc.P_stat == zombie {
			p.State = "Z"
		}
		list = append(list, p)
	}
	return list
}
