"""The native library: compiled once for a machine, with all variants of its kind of processor, and kept in the cache folder.

It is plain C++ behind a C interface, without headers of torch or Python: it compiles in seconds, and one library serves every version
of both. Threads are OpenMP's; as torch is loaded first, they are torch's own. This file imports nothing but Python's own modules, so
that a wheel can be built with it (`hatch_build.py`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "source"
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-w")
_X86 = {
    "plain": (),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": ("-mavx2", "-mfma", "-mf16c", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni", "bf16"))),
}
_ARM = {"neon": (), "dotprod": ("-march=armv8.2-a+dotprod",)}
_LONGEST = 600  # seconds


def variants() -> dict[str, tuple[str, ...]]:
    """The variants for this kind of processor, and the flags that each is compiled with."""
    machine = platform.machine().lower()
    return _X86 if machine in ("x86_64", "amd64") else _ARM if machine in ("arm64", "aarch64") else {"plain": ()}


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++ and clang++ that there is."""
    named = os.environ.get("CXX")
    return next((found for name in ([named] if named else ["c++", "g++", "clang++"]) if (found := shutil.which(name))), None)


def library_path() -> Path:
    """The compiled library, made now where it is not there yet.

    One that was shipped with the package comes first. Raises ValueError where there is neither it nor a compiler, or the compiler
    fails.
    """
    from filelock import FileLock

    from triform.config.files import cache_folder

    shipped = SOURCE.parent / _name()
    if shipped.is_file():
        return shipped
    tool = compiler()
    if tool is None:
        raise ValueError("no C++ compiler; install one (Debian: apt install g++) and generation gets several times faster")
    folder = cache_folder() / "kernels" / _key(tool)
    if not (folder / _name()).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / _name()).is_file():
                print("compiling the native kernels, once for this machine ...", file=sys.stderr)
                build(folder, tool)
    return folder / _name()


def build(folder: Path, tool: str | None = None) -> Path:
    """Compile the library into a folder. Raises ValueError with the compiler's first complaint."""
    tool = tool or compiler()
    if tool is None:
        raise ValueError("expected a C++ compiler, found none; install g++ or clang++, or name one in CXX")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        threads, made = _threads(tool), Path(work) / _name()
        _compile(tool, threads, Path(work))
        objects = sorted(str(file) for file in Path(work).glob("*.o"))
        _run([[tool, "-shared", *threads, *objects, "-o", str(made)]])
        os.replace(made, folder / _name())
    return folder / _name()


def _compile(tool: str, threads: Sequence[str], work: Path) -> None:
    """All objects at once."""
    commands = [
        [tool, *_FLAGS, *flags, f"-DVARIANT={name}", "-c", str(SOURCE / "variant.cpp"), "-o", str(work / f"{name}.o")]
        for name, flags in variants().items()
    ]
    _run([*commands, [tool, *_FLAGS, *threads, "-c", str(SOURCE / "library.cpp"), "-o", str(work / "library.o")]])


def _run(commands: Sequence[Sequence[str]]) -> None:
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in running:
            said = process.communicate(timeout=_LONGEST)[1]
            if process.returncode:
                first = next((line for line in said.splitlines() if "error" in line), said[:200])
                raise ValueError(f"the native kernels do not compile: {first}")
    except subprocess.TimeoutExpired:
        raise ValueError(f"the native kernels were not compiled within {_LONGEST} seconds") from None
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _threads(tool: str) -> tuple[str, ...]:
    """The compiler's option for OpenMP; none where it has not got it, and one thread does it all."""
    with tempfile.TemporaryDirectory() as work:
        probe = Path(work) / "probe.cpp"
        probe.write_text("#include <omp.h>\nint f() { return omp_get_max_threads(); }\n", encoding="utf-8")
        command = [tool, "-fopenmp", "-shared", "-fPIC", str(probe), "-o", str(Path(work) / "probe.so")]
        return ("-fopenmp",) if subprocess.run(command, capture_output=True, timeout=_LONGEST).returncode == 0 else ()


def _key(tool: str) -> str:
    """What the library depends on: its source, its flags, the compiler and the kind of processor."""
    version = subprocess.run([tool, "--version"], capture_output=True, timeout=60).stdout
    parts = [version, repr((_FLAGS, variants(), platform.machine(), sys.platform)).encode()]
    parts += [file.name.encode() + file.read_bytes() for file in sorted(SOURCE.iterdir()) if file.suffix in (".h", ".cpp")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _name() -> str:
    return "triform_kernels.dll" if sys.platform == "win32" else "triform_kernels.so"
