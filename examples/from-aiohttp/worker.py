"""What ran in a pool of an aiohttp service, as a worker of hangup."""

import os
import pty
import subprocess

import hangup


@hangup.task
def words(input):
    """Work in this process: how often each word is there."""
    count = {}
    for word in input["text"].lower().split():
        count[word] = count.get(word, 0) + 1
    return count


@hangup.task
def sleepers(input):
    """Work in programs: one that wants a terminal, and one in a session of its own."""
    master, terminal = pty.openpty()
    shell = subprocess.Popen(["sh", "-c", 'test -t 0 && sleep "$1"', "sh", str(input["seconds"])], stdin=terminal)
    other = subprocess.Popen(["sleep", str(input["seconds"])], start_new_session=True)
    codes = [shell.wait(), other.wait()]
    os.close(master)
    os.close(terminal)
    return {"codes": codes}


hangup.serve()
