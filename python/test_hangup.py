"""Tests of hangup.py: a real worker process, real pipes, and this test as the server.

Run with any Python from 3.9: python3 -m unittest discover -s python
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "internal", "wire", "testdata", "golden.json")
PATIENCE = 20  # seconds until a test gives up

READY, EXECUTE, CHUNK, RESULT, PROGRESS, FAILURE, CANCEL, CANCELLED, SHUTDOWN = range(1, 10)
END = 1


# The worker: this file, started with HANGUP_IN in its environment.

def work():
    sys.path.insert(0, HERE)
    import hangup

    @hangup.task
    def echo(input):
        return input

    @hangup.task("steps")
    def stream(input):
        hangup.progress(done=1, total=2)
        yield b"one"
        yield b"two"

    @hangup.task
    def fail(input):
        raise hangup.Failure("no such picture", picture="a.png")

    class NotFound(hangup.Failure):
        pass

    class Unprintable(Exception):
        def __str__(self):
            raise ValueError

    def deep():
        value = []
        for _ in range(100000):
            value = [value]
        return value

    @hangup.task
    def evaluate(input):
        return eval(input)

    @hangup.task
    def execute(input):
        scope = dict(globals(), hangup=hangup, NotFound=NotFound, Unprintable=Unprintable, deep=deep)
        exec(input, scope)
        return scope.get("result")

    @hangup.task
    async def execute_async(input):
        scope = dict(globals(), hangup=hangup)
        body = "async def main():\n" + "".join("    %s\n" % line for line in input.splitlines())
        exec(body, scope)
        return await scope["main"]()

    @hangup.task
    def who(input):
        call = hangup.call()
        return [call.id, call.task, call.content_type, call.traceparent, call.scratch]

    @hangup.task
    def scratch(input):
        return hangup.scratch()

    @hangup.task
    def generate(input):
        for part in eval(input):
            yield part

    @hangup.task
    async def generate_async(input):
        for part in eval(input):
            await asyncio.sleep(0)
            yield part

    @hangup.task
    def quick(input):
        time.sleep(input)
        return input

    hangup.serve()


# The server.

def frame(kind, flags, number, payload=b""):
    return struct.pack(">IBBHQ", len(payload), kind, flags, 0, number) + payload


def head(*strings):
    packed = b"".join(each.encode() + b"\0" for each in strings)
    return struct.pack(">H", len(packed)) + packed


class Worker:
    def __init__(self, cooperative=False, env=None, argv=(os.path.abspath(__file__),)):
        inp, self.to = os.pipe()
        self.from_, out = os.pipe()
        environ = dict(os.environ, HANGUP_IN=str(inp), HANGUP_OUT=str(out), HANGUP_PROTOCOL="1")
        environ.update(env or {})
        if cooperative:
            environ["HANGUP_COOPERATIVE"] = "1"
        self.stdout, self.stderr = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self.process = subprocess.Popen([sys.executable, *argv], env=environ, pass_fds=(inp, out),
                                        stdin=subprocess.DEVNULL, stdout=self.stdout, stderr=self.stderr)
        os.close(inp)
        os.close(out)
        self.data = b""
        self.number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for fd in self.to, self.from_:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.stdout.close()
        self.stderr.close()

    def write(self, data):
        """Writes all of it, from a thread of its own where the pipe may fill."""
        def pump():
            view = memoryview(data)
            while view:
                view = view[os.write(self.to, view):]
        if len(data) <= 4096:
            pump()
            return None
        thread = threading.Thread(target=pump)
        thread.start()
        return thread

    def end_input(self):
        os.close(self.to)

    def read(self, timeout=PATIENCE):
        """The next frame; None at the end."""
        while True:
            if len(self.data) >= 16:
                length, kind, flags, zero, number = struct.unpack_from(">IBBHQ", self.data)
                assert zero == 0 and length <= 1 << 20, self.data[:16]
                if len(self.data) >= 16 + length:
                    payload = self.data[16:16 + length]
                    self.data = self.data[16 + length:]
                    return kind, flags, number, payload
            ready, _, _ = select.select([self.from_], [], [], timeout)
            if not ready:
                raise TimeoutError("nothing from the worker; its stderr: " + self.errors())
            more = os.read(self.from_, 1 << 20)
            if not more:
                assert not self.data, "the worker stopped inside a frame: %r" % self.data
                return None
            self.data += more

    def ready(self):
        kind, flags, number, payload = self.read()
        assert (kind, flags, number) == (READY, 0, 0), (kind, flags, number)
        return json.loads(payload)

    def request(self, task, body=b"", content_type="", **more):
        self.number += 1
        pairs = dict({"call": "call-%d" % self.number, "task": task, "content-type": content_type,
                      "size": str(len(body))}, **more)
        return frame(EXECUTE, END, self.number, head(*[each for pair in pairs.items() for each in pair]) + body)

    def start(self, task, body=b"", content_type="", **more):
        if isinstance(body, str):
            body = body.encode()
        if isinstance(body, (dict, list, int, float)):
            body, content_type = json.dumps(body).encode(), "application/json"
        self.write(self.request(task, body, content_type, **more))

    def answer(self):
        """What the worker sends for the call, up to its end: (kinds, head, body)."""
        kinds, heads, body = [], {}, b""
        while True:
            kind, flags, number, payload = self.read() or self.fail()
            assert number == self.number, "a frame of call %d for call %d" % (number, self.number)
            kinds.append(kind)
            if kind == RESULT:
                size = 2 + int.from_bytes(payload[:2], "big")
                strings = payload[2:size].decode().split("\0")
                heads = dict(zip(strings[:-1:2], strings[1::2]))
                payload = payload[size:]
            if kind in (RESULT, CHUNK):
                body += payload
            if flags & END or kind == CANCELLED:
                return kinds, heads, body
            if kind == FAILURE:
                return kinds, heads, json.loads(payload)

    def fail(self):
        raise AssertionError("the worker ended: %s" % self.errors())

    def call(self, *args, **more):
        self.start(*args, **more)
        return self.answer()

    def python(self, code, task="execute"):
        """Runs code inside a task. Its value is the name result, or what a coroutine returns."""
        kinds, heads, body = self.call(task, json.dumps(code), "application/json")
        assert kinds[-1] == RESULT, body
        return json.loads(body)

    def cancel(self):
        self.write(frame(CANCEL, 0, self.number))

    def cancelled(self):
        """Reads up to CANCELLED; the kinds of what came before it. Repeats the CANCEL, as a server does."""
        before = []
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                kind, _, number, _ = self.read(timeout=0.5) or self.fail()
            except TimeoutError:
                if time.monotonic() > give_up:
                    raise
                self.cancel()
                continue
            assert number == self.number, number
            if kind == CANCELLED:
                return before
            before.append(kind)

    def state(self):
        """What its main thread does, as the kernel says: S sleeps."""
        with open("/proc/%d/stat" % self.process.pid) as file:
            return file.read().rpartition(")")[2].split()[0]

    def wait(self):
        return self.process.wait(PATIENCE)

    def errors(self):
        return os.pread(self.stderr.fileno(), 1 << 20, 0).decode()  # the offset is the worker's too

    def output(self):
        return os.pread(self.stdout.fileno(), 1 << 20, 0).decode()


def source(text):
    """A worker program of its own."""
    return ["-c", "import sys; sys.path.insert(0, %r)\nimport hangup\n%s" % (HERE, text)]


class Protocol(unittest.TestCase):
    def golden(self):
        with open(GOLDEN) as file:
            return json.load(file)

    def test_golden_conversation(self):
        with Worker() as worker:
            self.assertEqual(worker.ready()["protocol"], 1)
            for each in self.golden()["frames"]:
                if each["name"] == "ready":
                    continue
                with self.subTest(each["name"]):
                    if each["to"] == "worker":
                        worker.write(bytes.fromhex(each["hex"]))
                    else:
                        self.assertEqual(frame(*worker.read()).hex(), each["hex"])
            self.assertIsNone(worker.read())
            self.assertEqual(worker.wait(), 0, worker.errors())

    def test_ready(self):
        with Worker() as worker:
            ready = worker.ready()
            self.assertEqual(ready["protocol"], 1)
            self.assertTrue(ready["sdk"].startswith("python/"))
            self.assertEqual(ready["tasks"][:2], ["echo", "steps"])

    def test_frames_cut_anywhere(self):
        with Worker() as worker:
            worker.ready()
            for byte in worker.request("echo", b"[1]", "application/json"):
                worker.write(bytes([byte]))
            self.assertEqual(worker.answer(), ([RESULT], {"content-type": "application/json"}, b"[1]"))
        whole = frame(EXECUTE, 0, 1, head("call", "c", "task", "echo", "size", "2") + b"x") + frame(CHUNK, END, 1, b"y")
        first = len(whole) - 17
        for cut, code in (1, 1), (15, 1), (16, 1), (first - 1, 1), (first, 1), (first + 5, 1), (len(whole), 0):
            with self.subTest(cut=cut), Worker() as worker:
                worker.ready()
                worker.write(whole[:cut])
                worker.end_input()
                self.assertEqual(worker.wait(), code, worker.errors())

    def test_breaches(self):
        for each in self.golden()["breaches"]:
            with self.subTest(each["name"]), Worker() as worker:
                worker.ready()
                worker.write(bytes.fromhex(each["hex"]))
                self.assertEqual(worker.wait(), 1)
                self.assertIn("protocol breach", worker.errors())
                self.assertNotIn("Traceback", worker.errors())

    def test_garbage(self):
        with Worker() as worker:
            worker.ready()
            worker.write(b"GET / HTTP/1.1\r\n\r\n")
            self.assertEqual(worker.wait(), 1)
            self.assertIn("protocol breach", worker.errors())

    def test_wrong_version(self):
        with Worker(env={"HANGUP_PROTOCOL": "2"}) as worker:
            self.assertEqual(worker.ready()["protocol"], 1)
            self.assertEqual(worker.wait(), 2)
            self.assertIn('version \'2\' of the worker protocol, this worker 1', worker.errors())

    def test_not_started_by_hangup(self):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("HANGUP_")}
        program = source("@hangup.task\ndef x(input): pass\nhangup.serve()")
        done = subprocess.run([sys.executable, *program], env=environ, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"hangup serve", done.stderr)
        self.assertNotIn(b"Traceback", done.stderr)

    def test_refuses_to_serve(self):
        a_task = "@hangup.task\ndef t(input): pass\nhangup.serve()"
        for program, message in (
            ("hangup.serve()", "there are no tasks"),
            ("import os; os.environ['HANGUP_IN'] = 'x'\n" + a_task, "HANGUP_IN=x"),
            ("import os; os.environ['HANGUP_OUT'] = '99'\n" + a_task, "Bad file descriptor"),
        ):
            with self.subTest(message), Worker(argv=source(program)) as worker:
                self.assertEqual(worker.wait(), 2)
                self.assertIn(message, worker.errors())
                self.assertNotIn("Traceback", worker.errors())

    def test_end(self):
        for end in (lambda worker: worker.write(frame(SHUTDOWN, 0, 0)), Worker.end_input):
            with Worker() as worker:
                worker.ready()
                worker.call("echo", b"x")
                end(worker)
                self.assertEqual(worker.wait(), 0, worker.errors())

    def test_end_after_a_call(self):
        with Worker() as worker:  # the server is killed while a task runs: it is finished
            worker.ready()
            worker.start("quick", 0.05)
            worker.end_input()
            self.assertEqual(worker.answer()[0], [RESULT])
            self.assertEqual(worker.wait(), 0, worker.errors())

    def test_server_gone(self):
        with Worker() as worker:
            worker.ready()
            os.close(worker.from_)
            worker.start("echo", b"x")
            self.assertEqual(worker.wait(), 1)
            self.assertIn("the server is gone", worker.errors())
            self.assertNotIn("Traceback", worker.errors())


class Results(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.worker = cls.enterClass(Worker()) if hasattr(cls, "enterClass") else Worker()
        cls.addClassCleanup(cls.worker.__exit__)
        cls.worker.ready()

    def test_input(self):
        for body, content_type, want in (
            (b'{"a": [1, null]}', "application/json", b'{"a":[1,null]}'),
            (b' [1]\n', "application/json; charset=utf-8", b'[1]'),
            (b'1', "Application/Problem+JSON", b'1'),
            (b'{"a": 1}', "text/plain", b'{"a": 1}'),
            (b'{"a": 1}', "", b'{"a": 1}'),
            (b"\xff\0", "application/octet-stream", b"\xff\0"),
            (b"", "text/plain", b""),
            (b"", "", b"null"),
            ('"\u00fc"'.encode(), "application/json", b'"\\u00fc"'),
            (b'"\\ud800"', "application/json", b'"\\ud800"'),
        ):
            with self.subTest(body=body, content_type=content_type):
                kinds, heads, got = self.worker.call("echo", body, content_type)
                self.assertEqual((kinds, got), ([RESULT], want))
                self.assertIn(heads["content-type"], ("application/json", "application/octet-stream"))

    def test_input_that_is_not_json(self):
        for body, where in (
            (b'{"a": }', "line 1 column 7"),
            (b"", "line 1 column 1"),
            (b"[1] x", "Extra data: line 1 column 5"),
            (b"[NaN]", "NaN"),
            (b"-Infinity", "-Infinity"),
            (b'"\xff"', "position 1"),
        ):
            with self.subTest(body=body):
                kinds, _, failure = self.worker.call("echo", body, "application/json")
                self.assertEqual((kinds, failure["error"], failure["malformed"]), ([FAILURE], "ValueError", True))
                self.assertIn("the input is not valid JSON", failure["message"])
                self.assertIn(where, failure["message"])
        kinds, _, failure = self.worker.call("echo", b"[" * 100000, "application/json")
        self.assertEqual((kinds, failure["malformed"]), ([FAILURE], True))
        self.assertIn("too deep", failure["message"])

    def test_results(self):
        for code, want in (
            ("None", ("application/json", b"null")),
            ("b'x'", ("application/octet-stream", b"x")),
            ("bytearray(b'x')", ("application/octet-stream", b"x")),
            ("memoryview(b'abcd').cast('H')", ("application/octet-stream", b"abcd")),
            ("'<p>'", ("application/json", b'"<p>"')),
            ("hangup.Reply(b'x', 'image/png')", ("image/png", b"x")),
            ("hangup.Reply('\u00fc', 'text/plain')", ("text/plain", "\u00fc".encode())),
            ("hangup.Reply([b'a', b'', b'b'], 'text/plain')", ("text/plain", b"ab")),
            ("hangup.Reply([], 'text/plain')", ("text/plain", b"")),
            ("(part for part in ())", ("application/octet-stream", b"")),
            ("hangup.Reply(b'x')", ("application/octet-stream", b"x")),
        ):
            with self.subTest(code):
                kinds, heads, body = self.worker.call("execute", json.dumps("result = " + code), "application/json")
                self.assertEqual((heads.get("content-type"), body), want)

    def test_streams(self):
        big = "[b'a', b'b' * 200000, b'c']"
        for task in "generate", "generate_async":
            with self.subTest(task):
                kinds, heads, body = self.worker.call(task, json.dumps(big), "application/json")
                self.assertEqual(body, b"a" + b"b" * 200000 + b"c")
                self.assertEqual(kinds, [RESULT] + [CHUNK] * 6)
                kinds, _, failure = self.worker.call(task, json.dumps("[b'a', 'text']"), "application/json")
                self.assertEqual((kinds, failure["error"]), ([RESULT, FAILURE], "TypeError"))
                kinds, _, failure = self.worker.call(task, json.dumps("1/0"), "application/json")
                self.assertEqual((kinds, failure["error"]), ([FAILURE], "ZeroDivisionError"))

    def test_failures(self):
        for code, error, message in (
            ("{}['x']", "KeyError", "'x'"),
            ("result = float('nan')", "ValueError", "JSON compliant"),
            ("result = {1, 2}", "TypeError", "not JSON serializable"),
            ("result = []; result.append(result)", "ValueError", "Circular"),
            ("result = deep()", "RecursionError", "recursion"),
            ("result = hangup.Reply(b'', 'a\\0b')", "ValueError", "content type"),
            ("result = hangup.Reply(b'', '\\ud800')", "UnicodeEncodeError", "surrogates"),
            ("result = hangup.Reply(b'', None)", "TypeError", "NoneType"),
            ("raise Unprintable", "Unprintable", "cannot be printed"),
            ("raise hangup.Cancelled", "Cancelled", ""),
            ("raise BrokenPipeError('mine')", "BrokenPipeError", "mine"),
            ("raise GeneratorExit", "GeneratorExit", ""),
            ("raise NotFound('gone', id=1)", "NotFound", "gone"),
            ("raise hangup.Failure('x' * 2000000)", "", "x" * 65536),
            ("raise hangup.Failure('m', a=object())", "", "m"),
            ("raise hangup.Failure('m', a='x' * 2000000)", "", "m"),
            ("raise ValueError('\\ud800\\n')", "ValueError", "\ud800\n"),
            ("hangup.progress(a=b'')", "TypeError", "not JSON serializable"),
            ("hangup.progress(a='x' * (1 << 20))", "ValueError", "the most is 1048576"),
        ):
            with self.subTest(code):
                kinds, _, failure = self.worker.call("execute", json.dumps(code), "application/json")
                self.assertEqual((kinds, failure["error"]), ([FAILURE], error))
                self.assertIn(message, failure["message"])
        self.assertEqual(self.worker.call("echo", b"1")[2], b"1")

    def test_failure_detail(self):
        _, _, failure = self.worker.call("execute", json.dumps("def f():\n  1/0\nf()"), "application/json")
        self.assertTrue(failure["detail"].startswith("Traceback"), failure)
        self.assertIn("in f", failure["detail"])
        self.assertNotIn("/hangup.py", failure["detail"])
        _, _, failure = self.worker.call("execute", json.dumps("raise NotFound('gone', id=1)"), "application/json")
        self.assertEqual(failure, {"error": "NotFound", "message": "gone", "members": {"id": 1}})
        code = "raise hangup.Failure('m', a=object())"
        _, _, failure = self.worker.call("execute", json.dumps(code), "application/json")
        self.assertIn("left out", failure["detail"])

    def test_no_such_task(self):
        for name in "nothing", "":
            kinds, _, failure = self.worker.call(name)
            self.assertEqual((kinds, failure["error"]), ([FAILURE], "NoSuchTask"))

    def test_call(self):
        _, _, body = self.worker.call("who", b"x", "text/plain", traceparent="00-1", scratch="/s", unknown="key")
        self.assertEqual(json.loads(body), ["call-%d" % self.worker.number, "who", "text/plain", "00-1", "/s"])

    def test_scratch(self):
        _, _, body = self.worker.call("scratch", scratch="/tmp/hangup/1")
        self.assertEqual(json.loads(body), "/tmp/hangup/1")
        _, _, failure = self.worker.call("scratch")
        self.assertEqual((failure["error"], failure["message"]), ("RuntimeError", "the server gave this call no scratch directory"))

    def test_big_bodies(self):
        body = os.urandom(8 << 20) + b"odd"
        worker = self.worker
        worker.number += 1
        frames = [frame(EXECUTE, 0, worker.number, head("call", "c", "task", "echo", "size", str(len(body))))]
        sizes = [0, 1, 1 << 20] + [65536] * 120
        start = 0
        for size in sizes:
            part = body[start:start + size]
            start += len(part)
            frames.append(frame(CHUNK, END if start == len(body) else 0, worker.number, part))
            if start == len(body):
                break
        thread = worker.write(b"".join(frames))
        kinds, heads, got = worker.answer()
        thread.join()
        self.assertTrue(got == body, "the body came back changed")
        self.assertEqual(heads["size"], str(len(body)))
        self.assertEqual(kinds[0], RESULT)

    def test_coroutines_share_a_loop(self):
        code = "result = id(asyncio.get_running_loop())\nawait asyncio.sleep(0)\nreturn result"
        first = self.worker.python(code, "execute_async")
        self.assertEqual(first, self.worker.python(code, "execute_async"))
        code = "raise asyncio.CancelledError"
        _, _, failure = self.worker.call("execute_async", json.dumps(code), "application/json")
        self.assertEqual(failure["error"], "CancelledError")
        self.assertEqual(self.worker.python("async def main(): return 7\nresult = main()"), 7)

    def test_progress_belongs_to_its_call(self):
        self.worker.python("async def late():\n  await go.wait()\n  try: hangup.progress(late=1)\n"
                           "  except Exception as e: told.append(repr(e))\n"
                           "import builtins; builtins.go = asyncio.Event(); builtins.told = []\n"
                           "builtins.left = asyncio.ensure_future(late())\nreturn 1", "execute_async")
        said = self.worker.python("go.set()\nawait left\nhangup.progress(now=1)\nreturn told", "execute_async")
        self.assertIn("no call of hangup", said[0])
        for target in "f", "lambda: contextvars.copy_context().run(f)", "lambda: mine.run(f)":
            with self.subTest(target):
                said = self.worker.python("""
import contextvars
mine = contextvars.copy_context()
def f():
    try: hangup.progress(a=1)
    except RuntimeError as e: result.append(str(e))
result = []
thread = threading.Thread(target=%s)
thread.start()
thread.join()
""" % target)
                self.assertEqual(len(said), 1)

    def test_stdout_is_free(self):
        self.worker.python("print('a line'); print('not ended', end='')\nos.write(1, b'raw')")
        self.assertIn("a line\n", self.worker.output())


class Ends(unittest.TestCase):
    def test_how_a_task_may_end_its_worker(self):
        for code, exit_code in (
            ("sys.exit(7)", 7),
            ("raise SystemExit", 0),
            ("os._exit(9)", 9),
            ("os.kill(os.getpid(), 9)", -9),
            ("os.kill(os.getpid(), 15)", -15),
            ("raise KeyboardInterrupt", -2),
        ):
            for task in "execute", "execute_async":
                with self.subTest(code, task=task), Worker() as worker:
                    worker.ready()
                    worker.start(task, json.dumps(code), "application/json")
                    self.assertIsNone(worker.read())
                    self.assertEqual(worker.wait(), exit_code, worker.errors())

    def test_an_alarm_that_cuts_a_frame_short(self):
        """The rest of a long frame cannot be sent: better no worker than a stream nobody understands."""
        with Worker() as worker:
            worker.ready()
            worker.start("execute", json.dumps(
                "def stop(*_): raise TimeoutError\nsignal.signal(signal.SIGALRM, stop)\n"
                "signal.setitimer(signal.ITIMER_REAL, 0.05)\nhangup.progress(a='x' * 500000)"), "application/json")
            self.assertEqual(worker.wait(), 1)
            self.assertIn("cut a frame short", worker.errors())

    def test_only_task_needs_no_name(self):
        with Worker(argv=source("@hangup.task\ndef only(input): return 1\nhangup.serve()")) as worker:
            worker.ready()
            self.assertEqual(worker.call("")[2], b"1")

    def test_coroutines_left_behind_are_cancelled_at_shutdown(self):
        with Worker() as worker:
            worker.ready()
            worker.python("async def late():\n  try: await asyncio.sleep(100)\n  finally: print('ended')\n"
                          "import builtins; builtins.left = asyncio.ensure_future(late())\n"
                          "await asyncio.sleep(0)\nreturn 1", "execute_async")
            worker.write(frame(SHUTDOWN, 0, 0))
            self.assertEqual(worker.wait(), 0, worker.errors())
            self.assertEqual((worker.output(), worker.errors()), ("ended\n", ""))


class Cancel(unittest.TestCase):
    def setUp(self):
        self.worker = Worker(cooperative=True)
        self.addCleanup(self.worker.__exit__)
        self.worker.ready()

    def start(self, code, task="execute", sleeps=True):
        """Starts code that makes a progress, and waits until it sleeps: there it shall be cancelled."""
        self.worker.start(task, json.dumps(code), "application/json")
        kind, _, number, payload = self.worker.read()
        self.assertEqual((kind, number), (PROGRESS, self.worker.number), payload)
        give_up = time.monotonic() + PATIENCE
        while sleeps and self.worker.state() != "S":
            self.assertLess(time.monotonic(), give_up, "the task does not sleep")

    def still_works(self):
        self.assertEqual(self.worker.call("echo", b"next"),
                         ([RESULT], {"content-type": "application/octet-stream"}, b"next"))
        self.assertIsNone(self.worker.process.poll())
        self.assertEqual(self.worker.errors(), "")

    def test_while_it_sleeps(self):
        self.start("try:\n  hangup.progress(a=1)\n  time.sleep(100)\n"
                   "except hangup.Cancelled:\n  print('cancelled')\n  raise")
        started = time.monotonic()
        self.worker.cancel()
        self.assertEqual(self.worker.cancelled(), [])
        self.assertLess(time.monotonic() - started, 5)
        self.assertEqual(self.worker.output(), "cancelled\n")
        self.still_works()

    def test_wherever_it_is(self):
        for code in (
            "hangup.progress(a=1)\nsubprocess.run(['sleep', '100'])",
            "hangup.progress(a=1)\nthreading.Event().wait()",
            "hangup.progress(a=1)\nasyncio.run(asyncio.sleep(100))",
            "hangup.progress(a=1)\nos.read(os.pipe()[0], 1)",
            "hangup.progress(a=1)\ntry: time.sleep(100)\nfinally: hangup.progress(b=1)",
            "hangup.progress(a=1)\ntry: time.sleep(100)\nfinally: 1/0",
            "hangup.progress(a=1)\ntry: time.sleep(100)\nexcept hangup.Cancelled: result = 'swallowed'",
            "hangup.progress(a=1)\nhangup.progress(a='x' * 500000)",  # the pipe is full
        ):
            with self.subTest(code):
                self.start(code)
                self.worker.cancel()
                self.assertFalse({RESULT, FAILURE} & set(self.worker.cancelled()))
                self.still_works()
        for code in (
            "hangup.progress(a=1)\nwhile True: pass",
            "while True: hangup.progress(a=1)",
            "while True: hangup.progress(a='x' * 100000)",
        ):
            with self.subTest(code):
                self.start(code, sleeps=False)
                self.worker.cancel()
                self.assertFalse({RESULT, FAILURE} & set(self.worker.cancelled()))
                self.still_works()

    def test_is_raised_once(self):
        self.start("try: hangup.progress(a=1); time.sleep(100)\nfinally:\n  hangup.progress(b=1)\n  print('cleaned up')")
        self.worker.cancel()
        self.assertEqual(self.worker.cancelled(), [PROGRESS])
        self.assertEqual(self.worker.output(), "cleaned up\n")

    def test_coroutines(self):
        for code in (
            "hangup.progress(a=1)\ntry: await asyncio.sleep(100)\n"
            "except asyncio.CancelledError: print('cancelled'); raise",
            "hangup.progress(a=1)\ntry: await asyncio.sleep(100)\nexcept asyncio.CancelledError: print('cancelled')",
        ):
            with self.subTest(code):
                self.start(code, "execute_async")
                self.worker.cancel()
                self.assertEqual(self.worker.cancelled(), [])
                self.still_works()
        self.assertEqual(self.worker.output(), "cancelled\n" * 2)

    def test_streams(self):
        for task in "generate", "generate_async":
            with self.subTest(task):
                self.worker.start(task, json.dumps("iter(lambda: b'x' * 10000, None)"), "application/json")
                self.assertEqual(self.worker.read()[0], RESULT)
                self.worker.cancel()
                self.assertEqual(set(self.worker.cancelled()) | {CHUNK}, {CHUNK})
                self.still_works()

    def test_before_it_starts(self):
        for task in "execute", "execute_async":
            request = self.worker.request(task, json.dumps("print('ran')").encode(), "application/json")
            self.worker.write(request + frame(CANCEL, 0, self.worker.number))
            self.assertEqual(self.worker.cancelled(), [])
        self.assertEqual(self.worker.output(), "")
        self.still_works()

    def test_inside_the_input(self):
        self.worker.number += 1
        self.worker.write(frame(EXECUTE, 0, 1, head("call", "c", "task", "echo", "size", "100") + b"part"))
        self.worker.write(frame(CHUNK, 0, 1, b"part"))
        self.worker.cancel()
        self.assertEqual(self.worker.cancelled(), [])
        self.still_works()

    def test_after_the_result(self):
        self.still_works()
        self.worker.cancel()
        self.assertEqual(self.worker.cancelled(), [])
        self.still_works()

    def test_repeated(self):
        for code in "time.sleep(100)", "time.sleep(0.01)":
            self.worker.start("execute", json.dumps(code), "application/json")
            for _ in range(5):
                self.worker.cancel()
            self.worker.cancelled()
            self.still_works()

    def test_of_a_worker_that_is_not_cooperative(self):
        with Worker() as worker:
            worker.ready()
            worker.start("quick", 0.1)
            worker.cancel()
            self.assertEqual(worker.answer()[0], [RESULT])
            self.assertEqual(worker.cancelled(), [])
            self.assertEqual(worker.call("quick", 0)[0], [RESULT])

    def test_racing_the_end(self):
        """500 cancels just when a task ends: one CANCELLED each, and never a trace in the next call."""
        worker = self.worker
        codes = ["result = 1", "time.sleep(0.0003)", "hangup.progress(a=1)", "1/0", "result = (b'x' for _ in range(3))"]
        seen = set()
        for turn in range(500):
            if turn % 6 == 5:
                worker.start("execute_async", json.dumps("await asyncio.sleep(0.0003)"), "application/json")
            else:
                worker.start("execute", json.dumps(codes[turn % 6]), "application/json")
            delay = time.perf_counter() + (turn % 50) * 2e-5
            while time.perf_counter() < delay:
                pass
            worker.cancel()
            seen.add(tuple(worker.cancelled()))
        self.assertIn((), seen, "no cancel came before the end")
        self.assertIn((RESULT,), seen, "no cancel came behind the end")
        self.still_works()

    def test_is_not_armed_between_calls(self):
        state = "result = str(signal.getsignal(signal.SIGURG))"
        self.assertIn("on_signal", self.worker.python(state))
        self.worker.python("signal.signal(signal.SIGURG, signal.SIG_IGN)")  # undone at the end of the task
        with open("/proc/%d/status" % self.worker.process.pid) as file:
            status = dict(line.split(":", 1) for line in file)
        urgent = 1 << (signal.SIGURG - 1)
        self.assertFalse(int(status["SigCgt"], 16) & urgent)
        with Worker() as plain:
            plain.ready()
            self.assertNotIn("on_signal", plain.python(state))

    def test_a_foreign_urgent_signal_is_nothing(self):
        self.assertEqual(self.worker.python("os.kill(os.getpid(), signal.SIGURG); time.sleep(0.01); result = 1"), 1)


DEFAULT = str(signal.getsignal(signal.SIGURG))

# What a child of a task says of itself.
CHILD = """
def me():
    pipes = []
    for fd in os.listdir('/proc/self/fd'):
        try: pipes.append(os.readlink('/proc/self/fd/' + fd))
        except OSError: pass
    return {'pipes': sorted(pipe for pipe in pipes if pipe in PROTOCOL), 'wakeup': signal.set_wakeup_fd(-1),
            'mask': sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
            'urgent': str(signal.getsignal(signal.SIGURG))}
"""


class Children(unittest.TestCase):
    def setUp(self):
        self.worker = Worker(cooperative=True)
        self.addCleanup(self.worker.__exit__)
        self.worker.ready()
        self.pipes = [os.readlink("/proc/self/fd/%d" % fd) for fd in (self.worker.to, self.worker.from_)]

    def python(self, code, task="execute"):
        return self.worker.python("PROTOCOL = %r\n%s" % (self.pipes, code), task)

    def test_the_worker_has_what_a_child_must_not(self):
        held = self.python(CHILD + "result = me()['pipes']")
        self.assertEqual(held, sorted(self.pipes))

    def test_fork(self):
        said = self.python(CHILD + """
r, w = os.pipe()
a, b = os.pipe()
os.set_blocking(b, False)
signal.set_wakeup_fd(b)
if os.fork() == 0:
    os.write(w, json.dumps(me()).encode())
    os._exit(0)
os.wait()
signal.set_wakeup_fd(-1)
result = json.loads(os.read(r, 4096))
""")
        self.assertEqual(said, {"pipes": [], "wakeup": -1, "mask": [], "urgent": DEFAULT})

    def test_multiprocessing(self):
        said = self.python(CHILD + """
globals()['me'] = me
context = multiprocessing.get_context('fork')
def child(pipe):
    pipe.send(me())
mine, its = context.Pipe()
process = context.Process(target=child, args=(its,))
process.start()
result = mine.recv()
process.join()
""")
        self.assertEqual(said, {"pipes": [], "wakeup": -1, "mask": [], "urgent": DEFAULT})

    def test_pool_is_ended_by_a_cancel(self):
        self.worker.start("execute", json.dumps(
            "pool = multiprocessing.get_context('fork').Pool(2)\nwith pool:\n  pool.apply(abs, (1,))\n"
            "  hangup.progress(pids=[each.pid for each in pool._pool])\n  pool.apply(time.sleep, (100,))"),
            "application/json")
        kind, _, _, payload = self.worker.read()
        self.assertEqual(kind, PROGRESS, payload)
        self.worker.cancel()
        self.assertEqual(self.worker.cancelled(), [])
        for pid in json.loads(payload)["pids"]:
            self.assertFalse(os.path.exists("/proc/%d" % pid))

    def test_exec(self):
        said = self.python("""
result = subprocess.run("ls -l /proc/self/fd; env", shell=True, stdout=subprocess.PIPE, close_fds=False).stdout.decode()
""")
        self.assertIn("/proc/", said)
        for pipe in self.pipes:
            self.assertNotIn(pipe, said)
        self.assertNotRegex(said, "HANGUP_(?!TEST_)")

    def test_sigterm_of_a_forked_child_stays_there(self):
        """CPython #94454: a child inherits the wakeup descriptor, and its SIGTERM runs the parent's handler."""
        said = self.python("""
heard = []
asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.append, 1)
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
os.waitpid(pid, 0)
await asyncio.sleep(0.05)
asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
return heard
""", "execute_async")
        self.assertEqual(said, [])

    def test_a_child_that_comes_out_of_the_task_is_no_worker(self):
        for end, code in ("pass", 0), ("raise ValueError", 1), ("sys.exit(5)", 5):
            said = self.python("""
pid = os.fork()
if pid == 0:
    %s
else:
    result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
""" % end)
            self.assertEqual(said, code)
        self.assertEqual(self.worker.call("echo", b"x")[2], b"x")

    def test_a_child_makes_no_progress(self):
        said = self.python("""
r, w = os.pipe()
if os.fork() == 0:
    try: hangup.progress(a=1)
    except RuntimeError as e: os.write(w, str(e).encode())
    os._exit(0)
os.wait()
result = os.read(r, 100).decode()
""")
        self.assertIn("no call of hangup", said)

    def test_cancel_is_not_for_the_child(self):
        """The parent is told, a forked child runs on: it is killed as part of the tree, not by the SDK."""
        self.worker.start("execute", json.dumps(
            "pid = os.fork()\nif pid == 0:\n  time.sleep(100)\n  os._exit(0)\n"
            "try:\n  hangup.progress(pid=pid)\n  time.sleep(100)\n"
            "finally:\n  print(os.waitpid(pid, os.WNOHANG))\n  os.kill(pid, 9)\n  os.wait()"),
            "application/json")
        self.worker.read()
        self.worker.cancel()
        self.assertEqual(self.worker.cancelled(), [])
        self.assertEqual(self.worker.output(), "(0, 0)\n")

    def test_spawn_needs_no_main_guard(self):
        with tempfile.NamedTemporaryFile("w", suffix=".py") as program:
            program.write("import sys; sys.path.insert(0, %r)\nimport hangup, multiprocessing\n"
                          "def double(x): return 2 * x\n"
                          "@hangup.task\ndef work(input):\n"
                          "    with multiprocessing.get_context('spawn').Pool(1) as pool: return pool.map(double, input)\n"
                          "hangup.serve()\n" % HERE)
            program.flush()
            with Worker(argv=[program.name]) as worker:
                worker.ready()
                self.assertEqual(worker.call("work", [1, 2])[2], b"[2,4]")


if __name__ == "__main__":
    if "HANGUP_IN" in os.environ:
        work()
    else:
        unittest.main()
