"""The native library: compiled once, kept, shipped, and done without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from triform.kernels import build, native

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo fake {version}; exit 0; fi
echo "$@" >> {log}
while [ $# -gt 1 ]; do shift; if [ "$p" = -o ]; then echo made > "$1"; fi; p=$1; done
if [ "$p" = -o ]; then :; fi
{end}
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down what it is asked, and files that say so."""
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path / "cache"))
    return _compiler(tmp_path, monkeypatch)


def _compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, version: int = 1, end: str = "exit 0") -> Path:
    tool = folder / "c++"
    tool.write_text(FAKE.format(version=version, log=folder / "log", end=end), encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("CXX", str(tool))
    return folder / "log"


def test_it_is_compiled_once_for_each_compiler(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.library_path()
    assert first.is_file()
    asked = compiler.read_text()
    for name, flags in build.variants().items():
        assert f"-DVARIANT={name} " in asked
        assert all(flag in asked for flag in flags)
    assert build.library_path() == first
    assert compiler.read_text() == asked
    _compiler(tmp_path, monkeypatch, version=2)
    assert build.library_path() != first
    assert len(compiler.read_text()) > len(asked)
    assert not list(first.parent.glob("tmp*")), "work is cleared away"


def test_a_failure_leaves_nothing(compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _compiler(tmp_path, monkeypatch, end='echo "step.h:1: error: no such thing" >&2; exit 1')
    with pytest.raises(ValueError, match=r"do not compile: step\.h:1: error: no such thing"):
        build.library_path()
    assert not list((tmp_path / "cache").rglob("triform_kernels.*"))


def test_a_shipped_library_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SOURCE", tmp_path / "source")
    shipped = tmp_path / build._name()
    shipped.write_bytes(b"")
    assert build.library_path() == shipped


def test_without_a_compiler_one_line_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    native.library.cache_clear()
    try:
        assert native.library() is None
        assert native.library() is None
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "no C++ compiler; install one" in said
    finally:
        native.library.cache_clear()


def test_a_library_of_other_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="none"):
        native.Native(str(tmp_path / "none.so"))
    real = native.Native(str(build.library_path()))
    monkeypatch.setattr(native, "_STRUCTURES", (native.Norm, *native._STRUCTURES[1:]))
    with pytest.raises(ValueError, match="made from other source"):
        native.Native(real.path)


def test_a_wheel_can_be_built_without_the_package() -> None:
    """`build.py` runs by itself, as the build hook runs it."""
    import runpy

    alone = runpy.run_path(str(build.SOURCE.parent / "build.py"))
    assert alone["variants"]() == build.variants()
    assert (Path(__file__).parents[2] / "hatch_build.py").is_file()
    assert os.access(build.SOURCE / "api.h", os.R_OK)
