"""Work that tells how it looks from inside a worker, and work that floods it."""

import os
import resource
import signal
import sys
import time

import hangup


@hangup.task
def echo(input):
    return input


@hangup.task
def inside(input):
    """What a worker has of the server, and of the processes it is told of: as little
    as possible."""
    seen = []
    for pid in input:
        for name in ("environ", "mem", "maps"):
            try:
                with open("/proc/%d/%s" % (pid, name), "rb") as file:
                    file.read(1)
                seen.append("%d/%s" % (pid, name))
            except OSError:
                pass
        try:
            os.kill(pid, 0)
            seen.append("%d can be signalled" % pid)
        except PermissionError:
            pass
    with open("/proc/self/status") as status:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    opened = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            opened[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            pass  # the directory itself
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "status": lines,
        "fds": opened,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "umask": umask,
        "pid": os.getpid(),
        "session": os.getsid(0),
        "group": os.getpgid(0),
        "parent": os.getppid(),
        "nice": os.nice(0),
        "seen": seen,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
    }


@hangup.task
def orphans(input):
    """Some that nobody waits for, each in a session of its own."""
    for _ in range(input["n"]):
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os.setsid()
                if input["stay"]:
                    signal.pause()
            os._exit(0)
        os.waitpid(pid, 0)
    if input["stay"]:
        signal.pause()
    return input["n"]


@hangup.task
def floods(input):
    """Writes at full speed for some seconds; returns how much it got rid of."""
    out, piece = {"stdout": 1, "stderr": 2}[input["stream"]], input["piece"].encode()
    piece *= max(1, 65536 // len(piece))
    total, end = 0, time.monotonic() + input["seconds"]
    while time.monotonic() < end:
        total += os.write(out, piece)
    sys.stdout.flush()
    return total


hangup.serve()
