"""Files of packages, pinned: fetched through the user's own pip configuration, checked, and kept in the cache."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from triform.config.files import cache_folder

from .cache import file_hash, new_folder, tree_hash, unpack
from .index import download_archive, download_wheel


@dataclass(frozen=True)
class Archive:
    """A file of a package index: its name, SHA-256 and size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """Files of one version of a package. `package` is None where nothing is fetched.

    archive: the file that was pinned; None where the package has one a platform.
    members: patterns of the files that are taken out of it.
    sha256: that of the folder they make (see `tree_hash`).
    """

    kept_in: ClassVar[str] = "data"  # the folder of the cache

    name: str
    title: str
    description: str
    licence: str
    source: str
    package: str | None = None
    version: str | None = None
    module: str | None = None
    archive: Archive | None = None
    members: tuple[str, ...] = ()
    sha256: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where its files lie once fetched; None where nothing is fetched."""
        return cache_folder() / self.kept_in / f"{self.name}-{self.version}" if self.package else None

    @property
    def fetched(self) -> bool:
        """Whether it can be read without a network."""
        return self.folder is None or self.folder.is_dir()


def fetch(item: Pinned) -> Path | None:
    """Fetch pinned files, unless the cache holds them whole, and return their folder (None where nothing is fetched).

    Raises ValueError when they cannot be had, or when what was had is not what was pinned; nothing is kept of it then.
    """
    folder = item.folder
    if folder is None:
        return None
    if folder.is_dir():
        if tree_hash(folder) == item.sha256:
            return folder
        shutil.rmtree(folder)
    with new_folder(folder) as work, tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        if not _copy_installed(item, work):
            archive = _download(item, Path(temporary))
            unpack(archive, item.members, work)
            _check(item, f"the files in {archive.name} have SHA-256", tree_hash(work), str(item.sha256))
    return folder


def _copy_installed(item: Pinned, work: Path) -> bool:
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


def _download(item: Pinned, folder: Path) -> Path:
    pinned = item.archive
    if pinned and not pinned.file.endswith(".whl"):
        return download_archive(str(item.package), pinned.file, pinned.sha256, folder)
    wheel = download_wheel(f"{item.package}=={item.version}", folder, pinned.bytes if pinned else None)
    if pinned:
        _check(item, f"the bytes of {wheel.name} are", f"{wheel.stat().st_size:,}", f"{pinned.bytes:,}")
        _check(item, f"{wheel.name} has SHA-256", file_hash(wheel), pinned.sha256)
    return wheel


def _check(item: Pinned, what: str, found: str, pinned: str) -> None:
    if found != pinned:
        raise ValueError(f"{item.name}: {what} {found[:12]}, but {pinned[:12]} was pinned; nothing was kept")
