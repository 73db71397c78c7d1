"""Work that leaves files in its scratch directory, whichever way it ends."""

import os
import subprocess
import sys
import time

import hangup

WRITE = """
import os, sys, time
n = 0
while True:
    try:
        os.makedirs(sys.argv[1] + "/in", exist_ok=True)
        open(sys.argv[1] + "/in/%d" % n, "w").close()
    except OSError:
        pass  # it is just being removed
    n += 1
    time.sleep(0.001)
"""


@hangup.task
def echo(input):
    return input


def fill():
    path = hangup.scratch()
    assert os.listdir(path) == [] and os.stat(path).st_mode & 0o7777 == 0o700, path
    os.makedirs(path + "/a/b/c")
    os.symlink("/", path + "/a/root")
    with open(path + "/a/b/c/file", "w") as f:
        f.write("x" * 1000)
    os.chmod(path + "/a/b", 0)
    return path


@hangup.task
def done(_):
    return fill()


@hangup.task
def fails(_):
    fill()
    raise hangup.Failure("as it was told to")


@hangup.task
def dies(_):
    fill()
    os._exit(3)


def write(path):
    return subprocess.Popen([sys.executable, "-c", WRITE, path], start_new_session=True)


@hangup.task
def writes(_):
    """Two processes write on and on, until they are killed."""
    path = fill()
    write(path)
    while not os.path.exists(path + "/in"):
        time.sleep(0.01)
    hangup.progress(path=path)
    while True:
        open(path + "/%d" % time.monotonic_ns(), "w").close()
        time.sleep(0.001)


@hangup.task
def leaves(_):
    """A helper that outlives the call writes on, and makes the directory anew."""
    path = fill()
    write(path)
    return path


hangup.serve()
