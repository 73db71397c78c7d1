"""A service that once went down with the work it cancelled: an event loop that handles
SIGTERM, and so has a wakeup descriptor; work in children that multiprocessing forks; and
one of them talks to a program on a terminal of its own."""

import asyncio
import multiprocessing
import os
import pty
import signal
import sys
import time

import hangup

forking = multiprocessing.get_context("fork")


class GracefulExit(SystemExit):
    pass


def graceful_exit():
    raise GracefulExit


def on_terminal(up):
    """In a child: a program on a terminal, which is not to outlive this process."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("cat", ["cat"])

    def end(*_):
        os.kill(pid, signal.SIGHUP)
        os.waitpid(pid, 0)
        sys.exit()

    signal.signal(signal.SIGTERM, end)
    os.write(terminal, b"ready\n")
    os.read(terminal, 100)
    up.send(pid)
    time.sleep(1000)


def quiet(up):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    up.send(os.getpid())
    time.sleep(1000)


def begin(target):
    """Starts a child for the work and waits until it is at it."""
    up, theirs = forking.Pipe(duplex=False)
    child = forking.Process(target=target, args=(theirs,), daemon=True)
    child.start()
    up.recv()
    return child


@hangup.task
def echo(input):
    return input


@hangup.task
def late_echo(input):
    time.sleep(0.02)
    return input


@hangup.task
async def story(_):
    """Says when all of it runs, and then works for ever."""
    loop = asyncio.get_running_loop()
    for number in signal.SIGTERM, signal.SIGINT:
        loop.add_signal_handler(number, graceful_exit)
    children = [begin(on_terminal), begin(quiet)]
    yield b"up\n"
    await asyncio.sleep(1000)
    del children


@hangup.task
async def cancels_child(_):
    """Ends a child by SIGTERM; returns the signals that this process then believes to have."""
    loop = asyncio.get_running_loop()
    believed = []
    loop.add_signal_handler(signal.SIGTERM, believed.append, "SIGTERM")
    child = begin(on_terminal)
    child.terminate()
    child.join()
    for _ in range(10):  # whatever is in the wakeup descriptor is read by now
        await asyncio.sleep(0)
    loop.remove_signal_handler(signal.SIGTERM)
    return believed


hangup.serve()
