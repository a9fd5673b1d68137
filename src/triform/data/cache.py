"""The folder where fetched data is kept, and archives unpacked into it: checked, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

_LARGEST_MEMBER = 256 * 2**20


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_hash(folder: Path) -> str:
    """SHA-256 of a folder: of the lines "SHA-256 of the file, two spaces, path" in the order of the paths, as `sha256sum` prints them."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("".join(f"{file_hash(path)}  {name}\n" for name, path in files).encode()).hexdigest()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends well, and is removed when it does not.

    Where the target exists by then (another process was first), it stays as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        try:
            os.replace(work, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unpack(archive: Path, patterns: Iterable[str], folder: Path) -> int:
    """Write the regular files of a wheel (zip) or a source archive (tar) whose paths match a pattern into a folder.

    The top folder of a source archive is left out of the paths. Links, absolute paths and paths that lead
    out of the folder are refused. Returns how many files there were.
    """
    patterns = tuple(patterns)
    count = 0
    for name, size, data in _members(archive, patterns):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise ValueError(f"{archive.name}: the path {name!r} leads out of the archive; the file is not to be trusted")
        if size > _LARGEST_MEMBER:
            raise ValueError(f"{archive.name}: {name!r} would take {size:,} bytes, more than the {_LARGEST_MEMBER:,} allowed")
        target = folder.joinpath(*path.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        with data() as source, target.open("wb") as stream:
            shutil.copyfileobj(source, stream, 2**20)
        count += 1
    return count


def _members(archive: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, int, Callable[[], AbstractContextManager[IO[bytes]]]]]:
    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    try:
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as bundle:
                for info in bundle.infolist():
                    if wanted(info.filename) and not info.is_dir():
                        yield info.filename, info.file_size, partial(bundle.open, info)
        else:
            with tarfile.open(archive) as tape:
                for member in tape:
                    name = member.name.partition("/")[2]
                    if wanted(name) and member.isfile():
                        yield name, member.size, partial(_opened, tape, member)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive.name}: not a readable archive ({error})") from error


def _opened(tape: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tape.extractfile(member)
    assert stream is not None, "only regular files are opened"
    return stream
