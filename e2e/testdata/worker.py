"""What the tests call: work that behaves, and work that does not."""

import os
import signal
import subprocess
import sys
import time

import hangup


@hangup.task
def echo(input):
    return input


@hangup.task
def late_echo(input):
    time.sleep(0.02)
    return input


@hangup.task
def pid(_):
    return os.getpid()


@hangup.task
def sleep(seconds):
    time.sleep(seconds)
    return "slept"


@hangup.task
def until(path):
    """Waits until the file is there."""
    while not os.path.exists(path):
        time.sleep(0.005)
    return "came"


@hangup.task
def stream(input):
    def parts():
        for _ in range(input["parts"]):
            yield b"x" * input["size"]
            time.sleep(input["pause"])

    return hangup.Reply(parts(), "application/octet-stream")


def family():
    """A child, one in a session of its own, and an orphan that ignores SIGTERM."""
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(1000)
        os._exit(0)


@hangup.task
def tree(_):
    family()
    time.sleep(1000)


@hangup.task
def stubborn(_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


@hangup.task
def raises(_):
    raise KeyError("nothing there")


@hangup.task
def fails(_):
    raise hangup.Failure("the cat is out", cat="Tom")


@hangup.task
def raises_in_handler(_):
    def handler(*_):
        raise RuntimeError("in a signal handler")

    signal.signal(signal.SIGUSR1, handler)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(1000)


@hangup.task
def exits(code):
    sys.exit(code)


@hangup.task
def crashes(_):
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(1000)


def protocol_out():
    """The descriptor the SDK replies on: the one pipe open for writing above stderr."""
    import fcntl
    import stat

    for fd in range(3, 64):
        try:
            mode = os.fstat(fd).st_mode
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError:
            continue
        if stat.S_ISFIFO(mode) and flags & os.O_ACCMODE == os.O_WRONLY:
            return fd
    raise RuntimeError("no reply pipe")


@hangup.task
def closes(_):
    os.close(protocol_out())
    time.sleep(1000)


@hangup.task
def garbage(_):
    os.write(protocol_out(), b"\xff" * 64)
    time.sleep(1000)


@hangup.task
def says(text):
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)
    return "said"


@hangup.task
def floods(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        os.write(1, b"y" * 65536)
    return "flooded"


@hangup.task
def streams(_):
    """A reply without an end, from a task with a family."""
    family()
    return pours(_)


@hangup.task
def sleeps(_):
    time.sleep(1000)


@hangup.task
def pours(_):
    """A reply without an end."""

    def parts():
        while True:
            yield b"x" * 1024
            time.sleep(0.02)

    return hangup.Reply(parts(), "application/octet-stream")


@hangup.task
def reports(input):
    """Says what it does, to everybody; in the middle it waits for a file."""
    for n in range(input["steps"]):
        if n == input["steps"] // 2 and input.get("file"):
            while not os.path.exists(input["file"]):
                time.sleep(0.02)
        print("step %d" % n, flush=True)
        hangup.progress(done=n + 1, total=input["steps"])
    print("no newline", end="", file=sys.stderr, flush=True)
    return {"steps": input["steps"]}


@hangup.task
def reports_family(_):
    family()
    hangup.progress(family=True)
    time.sleep(1000)


@hangup.task
def drips(_):
    """A reply without an end, of which little comes, and seldom."""

    def parts():
        while True:
            yield b"x"
            time.sleep(9)

    return hangup.Reply(parts(), "application/octet-stream")


@hangup.task
def lots(_):
    """A reply of 100 MiB."""
    return hangup.Reply((b"x" * 65536 for _ in range(1600)), "application/octet-stream")


@hangup.task
def much(_):
    """A reply of 20 MiB: more than the kernel takes in for a caller who does not read."""
    return hangup.Reply((b"x" * 65536 for _ in range(320)), "application/octet-stream")


@hangup.task
def answers(input):
    """The nonce of the call, after some seconds, so many times."""
    time.sleep(input["seconds"])
    return hangup.Reply(input["nonce"].encode() * input["times"], "text/plain")


@hangup.task
def smuggles(_):
    return hangup.Reply(b"x", "text/plain\r\nX-Smuggled: 1")


hangup.serve()
