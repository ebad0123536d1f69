"""The guard: a small process that owns one engine and leaves nothing of it behind.

It runs as ``python -I engine_guard.py`` with the standard library alone, so that it stays small and
starts at once. One JSON line on stdin is its job; EOF on stdin, which also follows when the gateway is
killed, means: end every descendant and go. What it sees it tells as JSON lines on stdout:

    {"event": "phase", "phase": "loading", "at": 11.2}
    {"event": "pids", "pids": [[PID, START_TICKS], ...], "pgid": PID, "segments": ["/dev/shm/..."]}
    {"event": "exit", "code": 1, "signal": null, "at": 31.0, "last_lines": [...], "error_lines": [...]}
"""

import contextlib
import ctypes
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

Process = tuple[int, int]
"""A pid and the clock tick it started at: a pid that was given away again is another process."""

PHASES = ("starting", "loading", "compiling", "adapters", "ready")
# vLLM 0.32's own log lines, on CPU and GPU; the first of a phase begins it.
MARKS = (
    ("Starting to load model", "loading"),
    ("Loading model from scratch", "loading"),
    ("Loading safetensors checkpoint shards", "loading"),
    ("Loading weights took", "compiling"),
    ("Model loading took", "compiling"),
    ("Warming up model", "compiling"),
    ("Supported tasks:", "adapters"),
    ("Loaded new LoRA adapter", "adapters"),
)
# The last line of a traceback, behind vLLM's "(Worker pid=1) ERROR 11-22 07:07:26 [file.py:953] ".
ERROR = re.compile(
    r"^(\(\S+ pid=\d+\) )?(ERROR [\d: -]+\[\S+\] )?"
    r"([\w./-]+: (error: |Error while |No module )|[\w.]*(Error|Exception)\b: |  Value error, )"
)

BOOT_POLL_S, READY_POLL_S = 1.0, 5.0
PROBE_S = 2.0  # a booting engine that accepts but does not answer
TRACKER_S = 1.0  # Python's resource trackers remove named semaphores when their parents are gone
KILL_S = 30.0  # a process stuck in a driver call may never die; nobody waits longer for it
LINE_CHARS, LAST_LINES, ERROR_LINES = 1000, 40, 20
LOG_BYTES = 16 * 2**20
SHM = "/dev/shm/"  # noqa: S108 - where POSIX shared memory lives, not a temporary file of ours
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ON_LINUX = sys.platform == "linux"


def processes() -> dict[int, tuple[int, int, int]]:
    """Return parent, process group and start tick of every process that is not a zombie."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(entry.path, "stat").read_bytes()
                # The name in parentheses may hold spaces and parentheses itself.
                fields = stat[stat.rindex(b")") + 2 :].split()
                if fields[0] not in b"ZX":
                    found[int(entry.name)] = (int(fields[1]), int(fields[2]), int(fields[19]))
    return found


def descendants(roots: Iterable[int]) -> list[Process]:
    """Return every living process below ``roots``, whatever session or group it made for itself."""
    table = processes()
    found, front = [], set(roots)
    while front:
        front = {pid for pid, (parent, _, _) in table.items() if parent in front}
        found += [(pid, table[pid][2]) for pid in front]
    return found


def group(pgid: int) -> list[Process]:
    """Return a process group as one process: all there is to go by without /proc."""
    with contextlib.suppress(OSError):
        os.kill(-pgid, 0)
        return [(-pgid, 0)]
    return []


def mapped_segments(pids: Iterable[int]) -> set[str]:
    """Return the shared memory files these processes have mapped and nobody has removed."""
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/maps").open("rb") as maps:
            lines = [line for line in maps if SHM.encode() in line]
            found.update(os.fsdecode(line.split(maxsplit=5)[5].rstrip(b"\n")) for line in lines)
    return {path for path in found if path.startswith(SHM) and not path.endswith(" (deleted)")}


def remove_segments(segments: Iterable[str]) -> None:
    """Remove shared memory that dead processes left, unless somebody else has it mapped."""
    if left := set(segments):
        for path in left - mapped_segments(processes()):
            with contextlib.suppress(OSError):
                Path(path).unlink()


def remove_folder(folder: str) -> None:
    """Remove a folder and what is in it."""
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = Path(root, name)
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with contextlib.suppress(OSError):
        Path(folder).rmdir()


def kill(find: Callable[[], list[Process]], *, pause: Callable[[float], None]) -> None:
    """Send KILL to what ``find`` returns until it returns nothing, to resource trackers last."""
    began = time.monotonic()
    while (alive := find()) and time.monotonic() < began + KILL_S:
        is_patient = time.monotonic() < began + TRACKER_S
        for pid, _ in alive:
            if not (is_patient and _is_resource_tracker(pid)):
                _send(pid, signal.SIGKILL)
        pause(0.05)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _is_resource_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def serves(port: int, models: set[str]) -> bool:
    """Whether the engine on ``port`` is healthy and lists all of ``models``."""
    try:
        if _get(port, "/health") is None:
            return False
        listed = json.loads(_get(port, "/v1/models") or b"{}")
        return models <= {model["id"] for model in listed.get("data", ())}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _get(port: int, path: str) -> bytes | None:
    """Return the body of a 200. By hand: http.client would double the memory of this process."""
    with socket.create_connection(("127.0.0.1", port), timeout=PROBE_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if head.split(b" ", 2)[1:2] == [b"200"] else None


class Output:
    """What the engine prints: read always, kept as a few last lines, written to a log when asked."""

    def __init__(self, log: IO[bytes] | None) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        # Kept apart: the cause stands first, and one dying process after another buries it.
        self.errors: deque[str] = deque(maxlen=ERROR_LINES)
        self.phase = "starting"
        self._rest = b""
        self._log = log

    def feed(self, raw: bytes) -> None:
        """Take what came through the pipe; a progress bar's carriage return ends a line too."""
        self._write(raw)
        *lines, self._rest = (self._rest + raw).replace(b"\r", b"\n").split(b"\n")
        self._rest = self._rest[-LINE_CHARS:]
        for line in lines:
            if text := line.decode("utf-8", "replace").rstrip()[:LINE_CHARS]:
                self._keep(text)

    def _keep(self, text: str) -> None:
        self.last.append(text)
        if ERROR.match(text):
            self.errors.append(text)
        for mark, phase in MARKS:
            if mark in text and PHASES.index(phase) > PHASES.index(self.phase):
                self.phase = phase

    def _write(self, raw: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk must not take the engine with it
            if self._log is not None:
                self._log.write(raw)


def open_log(path: str) -> IO[bytes] | None:
    """Open a log to append to, the previous one aside when it has grown large; None if that fails."""
    with contextlib.suppress(OSError):
        log = Path(path)
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(path + ".1")
        return log.open("ab", buffering=0)
    return None


class Guard:
    """One engine, from its start to its last descendant."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.born = time.monotonic()
        self.parent = os.getppid()
        self.output = Output(open_log(job["log"]) if job.get("log") else None)
        self.selector = selectors.DefaultSelector()
        self.phase = ""
        self.status: int | None = None
        self.is_leaving = False
        self.told: list[Process] = []
        self.segments: set[str] = set()
        self.others = {entry.path for entry in os.scandir(SHM)} if Path(SHM).is_dir() else set()
        self.next_tick = self.born

    def run(self) -> None:
        """Start the engine, watch it until it or the parent is gone, and clear up."""
        self._listen()
        try:
            self._spawn()
        except OSError as exc:
            remove_folder(self.job["scratch"])
            self._tell("exit", code=127, signal=None, last_lines=[str(exc)], error_lines=[str(exc)])
            return
        while self.status is None and not self.is_leaving:
            self._pump(max(0.0, self.next_tick - time.monotonic()))
            if time.monotonic() >= self.next_tick:
                self._tick()
        if not self.is_leaving:
            self._enter("failed")  # at once: ending what is left may take a while
        self._clear()
        code = os.waitstatus_to_exitcode(self.status) if self.status is not None else None
        killed = -code if code is not None and code < 0 else None
        lines = {"last_lines": list(self.output.last), "error_lines": list(self.output.errors)}
        self._tell("exit", code=None if killed else code, signal=killed, **lines)

    def _listen(self) -> None:
        """Make stdin and signals wake the selector: death of the engine is seen at once."""
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        self._wake = wake  # an open reference: the descriptor must outlive this method
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._leave())
        # The engine has the gateway's terminal, but is in its background: who asks something there gets an
        # error, and is not stopped for ever. Ignored signals stay so in those that are started.
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        self.selector.register(awake, selectors.EVENT_READ, lambda: awake.recv(4096))
        self.selector.register(0, selectors.EVENT_READ, self._read_stdin)

    def _spawn(self) -> None:
        set_prctl(PR_SET_CHILD_SUBREAPER, 1)
        guard = os.getpid()

        def die_with_guard() -> None:
            set_prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:  # it died before the line above
                os._exit(1)

        self.engine = subprocess.Popen(  # noqa: S603 - the command is the operator's own
            self.job["command"],
            env=self.job["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Not a session of its own: where the kernel's autogroups schedule sessions against each other, a
            # gateway beside an engine on all cores was seen to wait for one for 0.6 s.
            process_group=0,
            preexec_fn=die_with_guard,  # safe: this process has one thread
        )
        assert self.engine.stdout is not None  # noqa: S101 - for the type checker
        self.pipe = self.engine.stdout.fileno()
        self.selector.register(self.pipe, selectors.EVENT_READ, self._read_engine)
        self._report()
        self._enter("starting")

    def _read_stdin(self) -> None:
        if not os.read(0, 65536):
            self.selector.unregister(0)
            self._leave()

    def _leave(self) -> None:
        self.is_leaving = True

    def _read_engine(self) -> None:
        if raw := os.read(self.pipe, 65536):
            self.output.feed(raw)
            if PHASES.index(self.output.phase) > PHASES.index(self.phase):
                self._enter(self.output.phase)
        else:
            self.selector.unregister(self.pipe)

    def _pump(self, wait_s: float) -> None:
        """Wait for something to happen, and handle it: a full pipe would block the engine."""
        for key, _ in self.selector.select(wait_s):
            key.data()
        self._reap()

    def _reap(self) -> None:
        """Collect the dead: a subreaper inherits every orphan below it."""
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == self.engine.pid:
                    self.status = self.engine.returncode = reaped[1]

    def _tick(self) -> None:
        if os.getppid() != self.parent:  # a forked sibling may still hold the other end of stdin
            self._leave()
        self._report()
        if self.phase != "ready" and serves(self.job["port"], set(self.job["models"])):
            self._enter("ready")
        self.next_tick = time.monotonic() + (READY_POLL_S if self.phase == "ready" else BOOT_POLL_S)

    def _find(self) -> list[Process]:
        return descendants([os.getpid()]) if ON_LINUX else group(self.engine.pid)

    def _report(self) -> None:
        """Tell which processes and shared memory would be left if this guard were killed."""
        found = sorted(self._find())
        segments = self.segments | (mapped_segments(pid for pid, _ in found) - self.others)
        if (found, segments) != (self.told, self.segments):
            self.told, self.segments = found, segments
            self._tell("pids", pids=found, pgid=self.engine.pid, segments=sorted(segments))

    def _terminate(self) -> None:
        """Ask every process to end, and give the engine itself the time it may take."""
        deadline = time.monotonic() + self.job["grace_s"]
        for pid, _ in self._find():
            _send(pid, signal.SIGTERM)
        while self.status is None and time.monotonic() < deadline:
            self._pump(0.1)

    def _clear(self) -> None:
        """Leave nothing: no process, no shared memory, no scratch folder."""
        self._report()
        if self.status is None:
            self._terminate()
        # Orphans of a dead engine hold its memory and serve nobody: no grace for them.
        kill(self._find, pause=self._pump)
        self._pump(0)
        remove_segments(self.segments)
        remove_folder(self.job["scratch"])

    def _enter(self, phase: str) -> None:
        if phase == "ready":
            self.output.errors.clear()  # what did not stop the boot explains no later death
        self.phase = phase
        self._tell("phase", phase=phase)

    def _tell(self, event: str, **fields: Any) -> None:
        told = {"event": event, "at": round(time.monotonic() - self.born, 1), **fields}
        line = json.dumps(told).encode() + b"\n"
        with contextlib.suppress(OSError):  # nobody listens any more; there is still work to do
            while line:
                line = line[os.write(1, line) :]


def set_prctl(option: int, value: int) -> None:
    """Set an attribute of this process; does nothing where there is no prctl."""
    if ON_LINUX:
        LIBC.prctl(option, value, 0, 0, 0)


def read_job() -> dict[str, Any]:
    """Read the job's line from stdin, and no byte more than its descriptor has."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            sys.exit("engine_guard: stdin ended before the job")
        line += part
    job: dict[str, Any] = json.loads(line)
    return job


LIBC = ctypes.CDLL(None)  # before the fork: nothing may be loaded between fork and exec

if __name__ == "__main__":
    Guard(read_job()).run()
