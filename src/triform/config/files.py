"""Writing a file so that a failure leaves the old one, and the folder where what can be made again is kept."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """$TRIFORM_CACHE, or `triform` in the platform's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if os.environ.get("TRIFORM_CACHE"):
        return Path(os.environ["TRIFORM_CACHE"]).expanduser()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).expanduser() / "triform"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "triform"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "triform" / "Cache"
    return Path.home() / ".cache" / "triform"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` when the block ends well, else it is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_READY = ".saved"
_NAMES = "files.json"


def sync(path: Path) -> None:
    """Wait until a file or a folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing_all(folder: Path, owned: Callable[[str], bool]) -> Iterator[Path]:
    """A temporary folder to write files to, which take their places in `folder` together when the block ends well.

    `owned` says of a name whether it belongs to the same whole: such files of the folder that
    were not written again are deleted. Everything else in the folder stays.

    A process that is killed leaves the old files, or all of the new ones: once they are on
    disk, a single rename decides for them, and what is left of the moving is done by `settle`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    temporary = folder / f"{_READY}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        names = sorted(file.name for file in temporary.iterdir())
        old = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name not in names and owned(file.name))
        (temporary / _NAMES).write_text(json.dumps({"old": old}), encoding="utf-8")
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        os.replace(temporary, folder / _READY)
        sync(folder)
        settle(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(folder: Path) -> None:
    """Finish what `replacing_all` had decided in a folder before it was cut off; nothing where there is nothing to finish.

    Raises ValueError where that cannot be done, as in a folder that may only be read.
    """
    ready = folder / _READY
    if ready.is_symlink() or not (ready / _NAMES).is_file():
        return
    try:
        _finish(folder, ready)
    except FileNotFoundError:  # another process was at it too, and was faster
        if ready.exists():
            settle(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: a save was cut off here, and cannot be finished ({error})") from None


def _finish(folder: Path, ready: Path) -> None:
    for name in json.loads((ready / _NAMES).read_text(encoding="utf-8"))["old"]:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()
    for path in sorted(ready.iterdir()):
        if path.name != _NAMES:
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            os.replace(path, folder / path.name)
    (ready / _NAMES).unlink()
    ready.rmdir()


def read_yaml(file: Path) -> Any:
    """What a YAML file holds, as plain data. Raises ValueError that names the file where it is not YAML in UTF-8."""
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected YAML, got {' '.join(str(error).split())}") from None
