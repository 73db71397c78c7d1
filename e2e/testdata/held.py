"""Work that goes on until the test lets it end, by a file of the name that it is given."""

import os
import time

import hangup


def wait(name):
    while not os.path.exists(name):
        time.sleep(0.01)


@hangup.task
def echo(input):
    return input


@hangup.task
def held(name):
    wait(name)
    return "held"


@hangup.task
def replies(name):
    def parts():
        yield b"begun, "
        wait(name)
        yield b"ended"

    return hangup.Reply(parts(), "text/plain")


hangup.serve()
