import os
import pty

import hangup

SCRIPT = (
    "trap '' HUP TERM INT; "
    "if command -v setsid >/dev/null; then setsid sleep 1000 & else sleep 1000 & fi; "
    "exec sh -i"
)


@hangup.task
def hello(name):
    return f"hello, {name}, from a Python worker"


@hangup.task
def terminal(_):
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", SCRIPT])
    while True:
        try:
            if not os.read(fd, 4096):
                break
        except OSError:  # the program ended
            break
    return "the program ended"


hangup.serve()
