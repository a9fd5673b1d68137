"""Runs one program under limits and tells how it ended.

`sandbox` starts this file as a script in a process of its own; it imports nothing of Triform, so that it starts at once. What a
program could do by accident is refused by an audit hook on every platform; on Linux a seccomp filter keeps it from the network
and from other processes whatever it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

try:
    import resource
except ImportError:  # Windows, where `sandbox` does not come this far
    resource = None  # type: ignore[assignment]

_FILE_BYTES = 2**20  # of a file that is written
_FILES = 64  # that are open
_LOCAL = 1  # the family of sockets within a machine, AF_UNIX
_TOLD = 300  # characters of what went wrong
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Events (docs.python.org/3/library/audit_events.html) that no program of a test needs, and those whose paths must lie in the folder
_REFUSED = (
    "ctypes.", "fcntl.", "ftplib.", "os.exec", "os.fork", "os.kill", "os.link", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.symlink", "os.system", "pty.", "resource.", "signal.pthread_kill", "smtplib.", "socket.", "subprocess.", "syslog.", "urllib.",
    "webbrowser.",
)  # fmt: skip
_CHANGES = (
    "os.chflags", "os.chmod", "os.chown", "os.mkdir", "os.remove", "os.removexattr", "os.rename", "os.rmdir", "os.setxattr",
    "os.truncate", "os.utime", "shutil.", "sqlite3.connect", "tempfile.",
)  # fmt: skip

# Of each processor: its name in seccomp's data (linux/audit.h), and the numbers of clone, clone3, execve, execveat, fork,
# io_uring_setup, kill, mount, pidfd_send_signal, ptrace, setns, socket, tgkill, tkill, unshare, vfork
_CALLS = {
    "x86_64": (0xC000003E, (56, 435, 59, 322, 57, 425, 62, 165, 424, 101, 308, 41, 234, 200, 272, 58)),
    "aarch64": (0xC00000B7, (220, 435, 221, 281, 425, 129, 40, 424, 117, 268, 198, 131, 130, 97)),
}
_OTHER_TABLE = 0x40000000  # numbers from here on are x86's second table of the same calls


def confine(folder: str, seconds: int, memory: int) -> None:
    """Set the limits, for good: processor time, address space, files, processes, network, and where files are changed."""
    limits = {
        "RLIMIT_AS": memory, "RLIMIT_FSIZE": _FILE_BYTES, "RLIMIT_NOFILE": _FILES, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0,
    }  # fmt: skip
    for name, most in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a limit that the platform does not have
            resource.setrlimit(getattr(resource, name), (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if sys.platform == "linux":
        _filter_calls()
    sys.addaudithook(_guard(os.path.realpath(folder)))


def _guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    realpath, fspath, isdir = os.path.realpath, os.fspath, os.path.isdir

    def inside(path: Any) -> bool:
        found = realpath(os.fsdecode(fspath(path)))
        return found == folder or found.startswith(folder + os.sep)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not isinstance(flags, int) or path == os.devnull:
                return
            if flags & _WRITES and not inside(path):
                raise PermissionError(f"writing outside the folder is not allowed: {path}")
            if mode is None and isdir(path) and not inside(path):  # what is opened relative to it would seem to be inside
                raise PermissionError(f"opening folders outside is not allowed: {path}")
        elif event == "socket.__new__" and arguments[1] == _LOCAL:  # a pair of them is what event loops wake themselves by
            return
        elif event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed")
        elif event.startswith(_CHANGES):
            for one in arguments:
                if isinstance(one, str | bytes | os.PathLike) and not inside(one):
                    raise PermissionError(f"{event} outside the folder is not allowed: {one!r}")

    return hook


def _filter_calls() -> None:
    """A seccomp filter (linux/seccomp.h) that refuses `_CALLS` with "not permitted"; without effect where the kernel has none."""
    import ctypes
    import struct

    if os.uname().machine not in _CALLS:
        return
    name, calls = _CALLS[os.uname().machine]
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    refuse, allow, kill = 0x00050001, 0x7FFF0000, 0x80000000
    program = [(load, 0, 0, 4), (equal, 1, 0, name), (end, 0, 0, kill), (load, 0, 0, 0), (at_least, len(calls) + 1, 0, _OTHER_TABLE)]
    program += [(equal, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    program += [(end, 0, 0, allow), (end, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))

    class Program(ctypes.Structure):
        _fields_ = (("size", ctypes.c_ushort), ("code", ctypes.c_void_p))

    whole = Program(len(program), ctypes.addressof(code))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    set_no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    prctl(set_no_new_privileges, 1, 0, 0, 0)
    prctl(set_seccomp, by_filter, ctypes.addressof(whole), 0, 0)


def run(program: str) -> str:
    """Run a program as a module; gives "passed", or what it raised."""
    module = ModuleType("solution")
    sys.modules["solution"] = module
    try:
        exec(compile(program, "solution.py", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the program did not come to its end
        try:
            return f"{type(error).__name__}: {error}".removesuffix(": ")[:_TOLD]
        except Exception:
            return type(error).__name__
    return "passed"


def main() -> None:
    """Read what to run from standard input, as JSON, and write how it ended to standard output, with the key that came with it.

    The program has neither of them, and the key is known to no file or environment: what it prints is not taken for its result.
    """
    asked = json.loads(sys.stdin.buffer.read())
    answers, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    confine(os.getcwd(), asked["seconds"], asked["memory"])
    told = run(asked["program"])
    os.write(answers, json.dumps({"key": asked["key"], "told": told}).encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
