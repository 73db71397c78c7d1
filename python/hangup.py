"""hangup, the Python side: a worker whose tasks are called over HTTP.

    import hangup

    @hangup.task                      # the task's name is the function's; async def works too
    def resize(input):                # decoded JSON, or bytes when the content type is not JSON
        hangup.progress(done=1, total=3)
        return {"ok": True}           # JSON, or bytes, or hangup.Reply(body, content_type)

    hangup.serve()

When the caller hangs up, the worker's whole process tree is killed: a task needs
to do nothing for that. Only in a workload with a cooperative step is Cancelled
raised in the task first (in a coroutine: asyncio.CancelledError); a task that then
returns in time keeps its worker warm.

What a task prints goes to the log. Tasks run on the main thread, one at a time,
coroutines on one event loop that lives as long as the worker. A task that raises
fails its call and the worker lives on; SystemExit and KeyboardInterrupt end the
worker. Standard library only, Python 3.9 and later.

The bytes are those of docs/protocol.md, version 1.
"""

import contextvars
import fcntl
import json
import os
import signal
import struct
import sys
import termios
import threading
import traceback
from types import AsyncGeneratorType, CoroutineType, GeneratorType

__all__ = ["task", "serve", "progress", "call", "scratch", "Call", "Reply", "Failure", "Cancelled"]
__version__ = "0.1"

PROTOCOL = 1

_HEADER = struct.Struct(">IBBHQ")  # length of the payload, type, flags, zero, id
_READY, _EXECUTE, _CHUNK, _RESULT, _PROGRESS, _FAILURE, _CANCEL, _CANCELLED, _SHUTDOWN = range(1, 10)
_END = 1
_MAX_PAYLOAD = 1 << 20
_PART = 64 << 10  # bytes of a body in one frame
_READ = _PART + (4 << 10)  # bytes to ask a read for: a part with its header and head
_ATOMIC = 4096  # PIPE_BUF: a shorter write goes whole or not at all
_TEXT = 64 << 10  # characters of a message or a traceback in a FAILURE

_NAMES = dict(enumerate("READY EXECUTE CHUNK RESULT PROGRESS FAILURE CANCEL CANCELLED SHUTDOWN".split(), 1))

_CO_COROUTINE = 0x80  # as in inspect, which takes long to import

# fcntl has not had these in every version.
_F_SETOWN_EX = 15
_F_OWNER_TID = 0

# What may come from the server: whether its header may have END, an id, a payload.
_SHAPES = {
    _EXECUTE: (True, True, True),
    _CHUNK: (True, True, True),
    _CANCEL: (False, True, False),
    _SHUTDOWN: (False, False, False),
}


class Cancelled(BaseException):
    """The call was cancelled. Raised in the task, at most once a call."""


class Failure(Exception):
    """Makes the call fail with this message; the members go to the caller beside it."""

    def __init__(self, message, **members):
        super().__init__(message)
        self.members = members


class Reply:
    """A result with a content type. The body is bytes, str (sent as UTF-8), or an
    iterable of bytes, plain or async, of which each is sent as it comes."""

    __slots__ = ("body", "content_type")

    def __init__(self, body, content_type="application/octet-stream"):
        self.body = body
        self.content_type = content_type


class Call:
    """What is known of a call beside its input. What was not told is ""."""

    __slots__ = ("id", "task", "content_type", "traceparent", "scratch")

    def __init__(self, head):
        self.id = head.get("call", "")
        self.task = head.get("task", "")
        self.content_type = head.get("content-type", "")
        self.traceparent = head.get("traceparent", "")
        self.scratch = head.get("scratch", "")


_tasks = {}
_session = None
_current = contextvars.ContextVar("hangup.call")  # so that what an older call left behind is known for it


def task(function, name=None):
    """Declares a task: @hangup.task, or @hangup.task("name")."""
    if isinstance(function, str):
        return lambda decorated: task(decorated, function)
    name = name or function.__name__
    if name in _tasks:
        raise ValueError("cannot declare the task %r twice" % name)
    _tasks[name] = function
    return function


def call():
    """The call this code works for; RuntimeError when there is none."""
    current = _current.get(None)
    if current is None or _session is None or current is not _session.call:
        raise RuntimeError("no call of hangup is running here")
    return current


def scratch():
    """The path of a directory that is this call's alone, empty at first. It is removed with
    all that is in it when the call has ended, however it ends. RuntimeError when there is none."""
    path = call().scratch
    if not path:
        raise RuntimeError("the server gave this call no scratch directory")
    return path


def progress(**members):
    """Tells whoever watches the call how far it is. Only on the main thread."""
    call()
    if threading.get_ident() != _session.thread:
        raise RuntimeError("cannot tell the progress: this is not the main thread")
    payload = _encode(members)
    if len(payload) > _MAX_PAYLOAD:
        raise ValueError("cannot tell the progress: %d bytes, the most is %d" % (len(payload), _MAX_PAYLOAD))
    _session.send_inside(_PROGRESS, payload)


def serve():
    """Does the calls that the server sends, until it asks the worker to exit or is gone."""
    global _session
    # A child that multiprocessing spawns imports the program again; it is no worker.
    if sys._getframe(1).f_globals.get("__name__") == "__mp_main__":
        return
    if "HANGUP_IN" not in os.environ or "HANGUP_OUT" not in os.environ:
        _refuse("HANGUP_IN and HANGUP_OUT are not set. This program is a worker: name it as the command "
                'of a workload of kind worker in hangup.yaml, and run "hangup serve"')
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("cannot serve: tasks run on the main thread, and this is another")
    if not _tasks:
        _refuse("there are no tasks: declare one with @hangup.task")
    # They are this process's, not its children's.
    descriptors = os.environ.pop("HANGUP_IN"), os.environ.pop("HANGUP_OUT")
    spoken, cooperative = os.environ.pop("HANGUP_PROTOCOL", ""), os.environ.pop("HANGUP_COOPERATIVE", "")
    try:
        inp, out = map(int, descriptors)
        for fd in inp, out:
            os.set_inheritable(fd, False)
            os.set_blocking(fd, True)
    except (ValueError, OverflowError, OSError) as error:
        _refuse("HANGUP_IN=%s, HANGUP_OUT=%s: %s" % (*descriptors, error))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # so that a line is the log of the call that printed it

    _session = _Session(inp, out, cooperative == "1" and sys.platform == "linux")
    os.register_at_fork(after_in_child=_session.leave)
    # READY goes out whatever the server speaks: it then can say what does not fit.
    ready = {"protocol": PROTOCOL, "sdk": "python/" + __version__, "tasks": list(_tasks)}
    _session.send(_READY, 0, 0, _encode(ready))
    if spoken != str(PROTOCOL):
        _refuse("the server speaks version %r of the worker protocol, this worker %d" % (spoken, PROTOCOL))
    _session.serve()


def _refuse(why):
    print("hangup: cannot serve: " + why, file=sys.stderr, flush=True)
    raise SystemExit(2)


def _breach(what, *args):
    """What to raise when the server says what no server of version 1 says. It ends the worker with 1."""
    return SystemExit("hangup: cannot go on: protocol breach: " + what % args)


class _Session:
    """The worker's half of the conversation with the server.

    Cancelled is raised by a signal handler, and must not come out in the code of this
    class: half a frame could be written, or the worker end. So there is a window,
    self.open: the handler raises only while it is open, and closes it by raising. The
    window is open while the task's own code runs, inside of run().

    A task starts when all its input is there, and until it is answered the server sends
    nothing but the CANCEL of that call. So the handler does not read; that something has
    come is enough. The frame stays where it is, to be answered when the task is over.

    One window is CPython's: a signal that comes just before a blocking system call is seen
    only when the call returns. The server closes it by repeating the CANCEL.
    """

    def __init__(self, inp, out, cooperative):
        self.inp = inp
        self.out = out
        self.thread = threading.get_ident()
        self.data = b""  # read, and not taken yet
        self.last = 0  # the number of the last call
        self.acknowledged = False  # that call was cancelled, and this has been said
        self.call = None  # the call that runs
        self.begun = False  # the head of its result was sent
        self.torn = False  # a long frame is being written: an exception now would leave half of it
        self.loop = None  # for coroutines; made for the first of them
        self.left = False  # this is a forked child, which is no worker

        self.cooperative = cooperative
        self.open = False  # Cancelled may be raised
        self.cancelled = False  # the call that runs is: nothing more of it is sent
        self.awaited = None  # the asyncio task to cancel, in place of raising
        self.before = None  # the handler that ours stands in for while it is armed
        if cooperative:
            # The signal goes to this very thread: when disarm() is through, none is on its way.
            fcntl.fcntl(inp, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_TID, threading.get_native_id()))
            fcntl.fcntl(inp, fcntl.F_SETSIG, signal.SIGURG)
            self.flags = fcntl.fcntl(inp, fcntl.F_GETFL) & ~os.O_ASYNC

    # The conversation.

    def serve(self):
        while True:
            frame = self.next()
            if frame is None:
                break
            kind, flags, number, payload = frame
            if kind == _EXECUTE and number > self.last:
                self.last = number
                self.acknowledged = False
                self.execute(flags, payload)
            elif kind == _CANCEL and number == self.last:
                if not self.acknowledged:  # else it was repeated
                    self.acknowledge()
            elif kind == _SHUTDOWN:
                break
            else:
                raise _breach("an unexpected %s with the id %d", _NAMES[kind], number)
        if self.loop is not None:
            self.close_loop()

    def execute(self, flags, payload):
        """Does one call, from its first frame until it is answered."""
        head, body = _split(payload)
        call = Call(head)
        size = head.get("size", "")
        if not call.id:
            raise _breach("EXECUTE without the id of its call")
        if not (size.isascii() and size.isdigit()):
            raise _breach("EXECUTE with the size %r", size)
        if not flags & _END:
            body = self.rest(body, int(size))
            if body is None:
                self.acknowledge()
                return
        if len(body) != int(size):
            raise _breach("an input that is not of its size")
        self.call = call
        _current.set(call)
        try:
            self.run(call, body)
        finally:
            self.call = None
        if self.torn:
            raise SystemExit("hangup: cannot go on: an exception out of a signal handler has cut a frame short")

    def acknowledge(self):
        """Says that the last call is over, and that nothing of it follows."""
        self.acknowledged = True
        self.send(_CANCELLED, 0, self.last)

    # One task.

    def run(self, call, body):
        """Runs the task and sends what becomes of it. Of a cancelled call nothing is sent:
        its CANCEL waits to be answered."""
        self.begun = self.cancelled = False
        result = failure = None
        if self.cooperative:
            self.arm()
        try:
            # Two levels: Cancelled may still come when the task has returned or raised, up to
            # the closing of the window. It is the outer level that then sees it.
            try:
                result = self.perform(call, body)
            finally:
                self.open = False
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if self.left:
                raise
            if not self.cancelled:
                failure = _failure(error)
        finally:
            if self.before is not None:
                self.disarm()
        if self.left:
            raise SystemExit(0)  # a forked child has returned from the task
        if self.cancelled or self.torn:
            return
        if failure is not None:
            self.send(_FAILURE, 0, self.last, failure)
        elif result is not None:
            self.send_result(*result)
        else:
            self.send(_CHUNK, _END, self.last)

    def perform(self, call, body):
        """The task's result, head and body; None when it was sent while the task ran."""
        function = _lookup(call.task)
        value = _decode(body, call.content_type)
        if not _is_async(function):  # that one is not run by calling it, and to drop it here would be told as a mistake
            self.open = True
            self.check()
        value = function(value)
        if isinstance(value, CoroutineType):
            value = self.wait_for(value)
        content_type = "application/octet-stream"
        if isinstance(value, Reply):
            value, content_type = value.body, value.content_type
            if isinstance(value, str):
                value = value.encode()
        elif not isinstance(value, (bytes, bytearray, memoryview, GeneratorType, AsyncGeneratorType)):
            value, content_type = _encode(value), "application/json"
        if isinstance(value, memoryview):
            value = value.cast("B")
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _head(content_type, len(value)), value
        if hasattr(value, "__aiter__"):
            self.wait_for(self.stream_async(value, content_type))
        else:
            for part in value:
                self.send_part(part, content_type)
        return None if self.begun else (_head(content_type), b"")

    def wait_for(self, coroutine):
        """Runs a coroutine. It is cancelled in asyncio's way: nothing is raised in the loop's own code."""
        self.open = False
        if self.loop is None:
            import asyncio  # it takes longer to import than many a worker to start

            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        self.awaited = self.loop.create_task(coroutine)
        try:
            if self.cancelled:
                self.awaited.cancel()
            value = self.loop.run_until_complete(self.awaited)
        finally:
            self.awaited = None
        self.open = True
        self.check()
        return value

    async def stream_async(self, parts, content_type):
        try:
            async for part in parts:
                self.send_part(part, content_type)
        finally:
            if hasattr(parts, "aclose"):
                await parts.aclose()

    def close_loop(self):
        """Ends what coroutines have left behind, as asyncio.run does."""
        import asyncio

        left = asyncio.all_tasks(self.loop)
        for each in left:
            each.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    # Cancelling.

    def arm(self):
        """From here on the kernel sends SIGURG when a frame comes."""
        self.before = signal.signal(signal.SIGURG, self.on_signal) or signal.SIG_DFL
        fcntl.fcntl(self.inp, fcntl.F_SETFL, self.flags | os.O_ASYNC)
        if self.waiting():  # it came before
            self.cancelled = True

    def disarm(self):
        fcntl.fcntl(self.inp, fcntl.F_SETFL, self.flags)
        before, self.before = self.before, None
        signal.signal(signal.SIGURG, before)

    def waiting(self):
        """Whether the server has sent more than was taken."""
        return bool(self.data) or fcntl.ioctl(self.inp, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"

    def on_signal(self, signum, frame):
        if self.cancelled or self.call is None or not self.waiting():
            return
        self.cancelled = True
        if self.awaited is not None:
            self.loop.call_soon_threadsafe(self.awaited.cancel)  # which wakes the loop
        elif self.open:
            self.check()

    def check(self):
        """Raises what the handler could not raise because the window was closed."""
        if self.cancelled:
            self.open = False
            raise Cancelled

    def leave(self):
        """In a child that was forked: it is no worker, and has nothing of one."""
        self.left = True
        self.open = False
        self.call = None
        for fd in self.inp, self.out:
            try:
                os.close(fd)
            except OSError:
                pass  # the task has closed it already
        self.inp = self.out = -1
        signal.set_wakeup_fd(-1)  # else signals to the child reach the event loop of the parent (CPython #94454)
        if self.before is not None:
            before, self.before = self.before, None
            signal.signal(signal.SIGURG, before)

    # Frames.

    def next(self):
        """The next frame: type, flags, id and payload. None at the end of the input."""
        data = self.data
        while len(data) < 16:
            more = os.read(self.inp, _READ)
            if not more:
                if data:
                    raise _breach("the input ended inside a frame")
                return None
            data = data + more if data else more
        length, kind, flags, zero, number = _HEADER.unpack_from(data)
        if length > _MAX_PAYLOAD:
            raise _breach("a payload of %d bytes, the most is %d", length, _MAX_PAYLOAD)
        if kind not in _SHAPES:
            raise _breach("an unexpected %s with the id %d", _NAMES.get(kind, "frame of the type %d" % kind), number)
        end, about, full = _SHAPES[kind]
        if zero or flags & ~end or about == (not number) or (length and not full):
            raise _breach("%s with a header that cannot be: %s", _NAMES[kind], data[:16].hex())
        size = 16 + length
        if len(data) < size:
            data = self.read_up_to(size, data)
        self.data = data[size:]
        return kind, flags, number, data[16:size]

    def read_up_to(self, size, data):
        parts = [data]
        size -= len(data)
        while size > 0:
            more = os.read(self.inp, _READ)
            if not more:
                raise _breach("the input ended inside a frame")
            parts.append(more)
            size -= len(more)
        return b"".join(parts)

    def rest(self, part, size):
        """The whole of an input that comes in parts. None when it is cancelled on the way."""
        parts = [part]
        have = len(part)
        while True:
            frame = self.next()
            if frame is None:
                raise _breach("the input ended inside a call")
            kind, flags, number, part = frame
            if number != self.last or kind not in (_CHUNK, _CANCEL):
                raise _breach("an unexpected %s with the id %d", _NAMES[kind], number)
            if kind == _CANCEL:
                return None
            parts.append(part)
            have += len(part)
            if have > size:
                raise _breach("an input that is not of its size")
            if flags & _END:
                return b"".join(parts)

    def send(self, kind, flags, number, *parts):
        data = b"".join((_HEADER.pack(sum(map(len, parts)), kind, flags, 0, number), *parts))
        self.torn = len(data) > _ATOMIC
        try:
            sent = os.write(self.out, data)
            while sent < len(data):
                sent += os.write(self.out, memoryview(data)[sent:])
        except BrokenPipeError:
            raise SystemExit("hangup: cannot go on: the server is gone") from None
        self.torn = False

    def send_inside(self, kind, *parts):
        """Sends a frame from inside a task. Cancelled does not cut it short but comes behind it."""
        if self.torn:
            raise RuntimeError("an exception out of a signal handler has cut a frame short")
        was, self.open = self.open, False
        try:
            self.send(kind, 0, self.last, *parts)
        finally:
            self.open = was
        if was:
            self.check()

    def send_part(self, part, content_type):
        """Sends a part of the result from inside a task. The head goes with the first."""
        part = memoryview(part).cast("B")
        for start in range(0, len(part), _PART):
            piece = part[start:start + _PART]
            if self.begun:
                self.send_inside(_CHUNK, piece)
            else:
                head = _head(content_type)
                self.begun = True
                self.send_inside(_RESULT, head, piece)

    def send_result(self, head, body):
        """Sends a whole result: mostly one frame and one write."""
        size = len(body)
        if size <= _PART:
            self.send(_RESULT, _END, self.last, head, body)
            return
        body = memoryview(body)
        self.send(_RESULT, 0, self.last, head, body[:_PART])
        for start in range(_PART, size, _PART):
            self.send(_CHUNK, _END if start + _PART >= size else 0, self.last, body[start:start + _PART])


class NoSuchTask(LookupError):
    """The server named a task that this worker has not."""


def _lookup(name):
    if not name and len(_tasks) == 1:
        return next(iter(_tasks.values()))
    if name not in _tasks:
        raise NoSuchTask("there is no task %r" % name)
    return _tasks[name]


def _is_async(function):
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def _head(content_type, size=0):
    """The head of a RESULT. The size is told where the result takes more than one frame."""
    strings = ["content-type", content_type]
    if size > _PART:
        strings += "size", str(size)
    head = ("\0".join(strings) + "\0").encode()
    if head.count(0) != len(strings) or len(head) > 0xFFFF:
        raise ValueError("cannot send the content type: it has a NUL or is longer than 64 KiB")
    return len(head).to_bytes(2, "big") + head


def _split(payload):
    """Head and body of an EXECUTE."""
    size = 2 + int.from_bytes(payload[:2], "big")
    if len(payload) < size:
        raise _breach("a head longer than its payload, or cut short")
    try:
        strings = payload[2:size].decode().split("\0")
    except UnicodeDecodeError:
        raise _breach("a head that is not UTF-8") from None
    if strings.pop():
        raise _breach("a head whose last string is not ended")
    if len(strings) % 2:
        raise _breach("a head with a key without a value")
    return dict(zip(strings[::2], strings[1::2])), payload[size:]


def _not_json(name):
    raise ValueError("%s is not JSON" % name)  # though Python reads it


_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_decoder = json.JSONDecoder(parse_constant=_not_json)


def _encode(value):
    return _encoder.encode(value).encode()


def _decode(body, content_type):
    """What a task is given: JSON decoded, bytes as they are, None when nothing was sent."""
    if content_type != "application/json":
        media = content_type.partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            return body if body or media else None
    try:
        return _decoder.decode(body.decode())
    except ValueError as error:  # with the position; UnicodeDecodeError is one too
        raise _Malformed("the input is not valid JSON: %s" % error) from None
    except RecursionError:
        raise _Malformed("the input is nested too deep") from None


class _Malformed(ValueError):
    """What was sent is not what its content type says."""


def _failure(error):
    """The payload of the FAILURE that tells of an exception."""
    info = {"error": type(error).__name__, "message": _text(error)}
    if isinstance(error, _Malformed):
        info.update(error="ValueError", malformed=True)
    if isinstance(error, Failure):
        if type(error) is Failure:
            info["error"] = ""
        if error.members:
            info["members"] = error.members
    else:
        info["detail"] = _traceback(error)
    try:
        payload = _encode(info)
        if len(payload) > _MAX_PAYLOAD:
            raise ValueError("they take %d bytes" % len(payload))
    except Exception as trouble:
        info.pop("members", None)
        info["detail"] = "the members of the failure were left out: " + _text(trouble)
        payload = _encode(info)
    return payload


def _text(error):
    try:
        return str(error)[:_TEXT]
    except Exception:
        return "(an exception that cannot be printed)"


def _traceback(error):
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next  # the task's own frames are what tells
    return "".join(traceback.format_exception(type(error), error, trace))[-_TEXT:]
