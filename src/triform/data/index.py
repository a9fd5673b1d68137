"""The package indexes of the user's own pip configuration.

Wheels are fetched by pip itself. A source archive cannot be: pip runs a package's build code to learn its
metadata, even for `pip download --no-deps`. For those the indexes that pip is configured with are read here
(the simple repository API, PEP 503, and folders of `find-links`), and the archive is only taken as a file.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn, wrap_file

_DEFAULT_INDEX = "https://pypi.org/simple"
_LARGEST = 64 * 2**20
_TRUE = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class PipSettings:
    """Where pip looks for packages, and whom it trusts."""

    indexes: tuple[str, ...]
    links: tuple[str, ...]
    cert: str | None
    trusted_hosts: frozenset[str]
    timeout: float


def _pip(*arguments: str, temporary: Path | None = None) -> subprocess.CompletedProcess[str]:
    if find_spec("pip") is None:
        raise ValueError(f"pip is not installed for {Path(sys.executable).name}, and data is fetched through it; run `python -m ensurepip`")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    places = {} if temporary is None else dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False, env=os.environ | places
    )


def parse_settings(listing: str) -> PipSettings:
    """The settings in what `pip config list` prints: files first, then pip's environment variables, each overriding the last."""
    values: dict[str, str] = {}
    for section in ("global", "download", ":env:"):
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            if name.startswith(f"{section}.") and value:
                values[name.removeprefix(f"{section}.").replace("_", "-")] = str(ast.literal_eval(value))
    indexes = [values.get("index-url") or values.get("pypi-url") or _DEFAULT_INDEX, *values.get("extra-index-url", "").split()]
    if values.get("no-index", "").lower() in _TRUE:
        indexes = []
    return PipSettings(
        indexes=tuple(indexes),
        links=tuple(values.get("find-links", "").split()),
        cert=values.get("cert"),
        trusted_hosts=frozenset(values.get("trusted-host", "").split()),
        timeout=float(values.get("timeout") or values.get("default-timeout") or 15),
    )


def pip_settings() -> PipSettings:
    """The settings in force for pip here: its configuration files and its environment variables."""
    return parse_settings(_pip("config", "list").stdout)


def download_wheel(requirement: str, folder: Path, size: int | None = None) -> Path:
    """Let pip fetch the wheel of "name==version" into a folder, without the packages that it depends on.

    size: its bytes, where they are known, for the progress bar.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary, _watched(Path(temporary), requirement, size):
        done = _pip(
            "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), requirement, temporary=Path(temporary)
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), "no wheel was found")
        raise ValueError(f"pip could not fetch {requirement}: {reason.removeprefix('ERROR: ')} (see `pip config list` for where it looks)")
    return wheels[0]


@contextmanager
def _watched(folder: Path, name: str, size: int | None) -> Iterator[None]:
    """A progress bar of the file that pip writes in its temporary folder: pip's own bar cannot be read in all of its versions."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            progress.update(task, completed=min(largest_file(folder), size or 2**62))

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=size)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def largest_file(folder: Path) -> int:
    """The size of the largest file below a folder, in bytes, while others write there."""
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except OSError:  # gone since it was listed
            continue
    return largest


def download_archive(name: str, file: str, sha256: str, folder: Path) -> Path:
    """Fetch the source archive `file` of a package from the first of pip's indexes that has it as it should be; run nothing of it.

    Raises ValueError, with each index's answer, when none has it.
    """
    settings = pip_settings()
    answers = []
    for place, url in _candidates(settings, name, file):
        try:
            data = _get(url, settings, file)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise ValueError(f"its SHA-256 is {found[:12]}…, not {sha256[:12]}…")
            target = folder / file
            target.write_bytes(data)
            return target
        except (OSError, ValueError) as error:
            answers.append(f"{_shown(place)}: {error}")
    looked = "; ".join(answers) or "none of pip's indexes has it"
    raise ValueError(f"could not fetch {file} ({looked}); see `pip config list` for where pip looks")


def _candidates(settings: PipSettings, name: str, file: str) -> Iterator[tuple[str, str]]:
    """Where a file may be had: (the place asked, the address of the file)."""
    for link in settings.links:
        path = _local(link)
        if path is None or path.is_file():
            pages = [link if path is None else path.resolve().as_uri()]
        else:
            if (path / file).is_file():
                yield link, (path / file).resolve().as_uri()
            pages = []
        for page in pages:
            yield from ((page, url) for url in _links(page, settings, file))
    project = re.sub(r"[-_.]+", "-", name).lower()
    for index in settings.indexes:
        page = f"{index.rstrip('/')}/{project}/"
        yield from ((index, url) for url in _links(page, settings, file))


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href")
        if link and tag == "a":
            self.found.append(link)
        elif link and tag == "base":
            self.base = link


def _links(page: str, settings: PipSettings, file: str) -> Iterator[str]:
    """The addresses on a page that end in the file's name. A page that cannot be read has none: the next index is asked."""
    try:
        text = _get(page, settings).decode("utf-8", "replace")
    except (OSError, ValueError):
        return
    anchors = _Anchors()
    anchors.feed(text)
    for link in anchors.found:
        url = urllib.parse.urljoin(urllib.parse.urljoin(page, anchors.base), link)
        parts = urllib.parse.urlsplit(url)
        if urllib.parse.unquote(parts.path).rsplit("/", 1)[-1] == file:
            yield _with_login(url, page)


def _local(place: str) -> Path | None:
    parts = urllib.parse.urlsplit(place)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return None if parts.scheme in ("http", "https") else Path(place).expanduser()


def _with_login(url: str, page: str) -> str:
    """An index's user name and password go with its own files, and to no other host."""
    ours, theirs = urllib.parse.urlsplit(url), urllib.parse.urlsplit(page)
    if "@" in theirs.netloc and ours.netloc == theirs.netloc.rpartition("@")[2]:
        return ours._replace(netloc=theirs.netloc).geturl()
    return url


def _shown(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _get(url: str, settings: PipSettings, shown_as: str | None = None) -> bytes:
    """What an address holds, at most 64 MiB; with a progress bar under the name `shown_as`."""
    path = _local(url)
    if path is not None:
        path = path / "index.html" if path.is_dir() else path
        return _limited(path.stat().st_size, path.read_bytes)
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl(), headers={"User-Agent": "triform"})
    if login:
        plain = urllib.parse.unquote(login).encode()
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(plain).decode())
    trusted = bool({host, parts.hostname} & settings.trusted_hosts)
    if parts.scheme != "https" and not trusted:
        raise ValueError("not an https address, nor a trusted-host of pip's")
    context = ssl.create_default_context(cafile=settings.cert)
    if trusted:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(request, timeout=settings.timeout, context=context) as response:
        size = int(response.headers.get("Content-Length") or 0)
        if shown_as is None:
            return _limited(size, lambda: response.read(_LARGEST + 1))
        with wrap_file(response, size, description=shown_as, console=Console(stderr=True), transient=True) as stream:
            return _limited(size, lambda: stream.read(_LARGEST + 1))


def _limited(size: int, read: Callable[[], bytes]) -> bytes:
    data = read() if size <= _LARGEST else b""
    if max(size, len(data)) > _LARGEST:
        raise ValueError(f"larger than {_LARGEST:,} bytes")
    return data
