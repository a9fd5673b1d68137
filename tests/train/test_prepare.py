"""Data prepared beforehand: where a run finds them, and what is the same for it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import LINES, plain

from triform import cli, config
from triform.data import pipeline, shards
from triform.data.cleaning import Clean, Filter, Normalize, WeightedSource
from triform.train import Recipe, read_recipe, run
from triform.train.prepare import prepare_data, prepared_folder, splits, text_fingerprint


def quiet(row: dict[str, Any]) -> None:
    pass


def cleaning(data: Path, **changes: Any) -> Recipe:
    """A tiny recipe that cleans two files, of which one comes twice."""
    (data / "more.txt").write_text("".join(f"{line}\n{line[::-1]}\n" for line in LINES), encoding="utf-8")
    found = plain("Causal", data)
    found["data"] |= {"source": [str(data / "lines.txt"), {"source": str(data / "more.txt"), "weight": 2.0}], "clean": {}} | changes
    return read_recipe(found)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TRIFORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_run_finds_what_was_prepared_and_is_the_same(data: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cleaning(data)
    made_there = run(recipe, tmp_path / "there", report=quiet)
    assert (tmp_path / "there/data/train").is_dir()
    card = prepare_data(recipe, progress=False)
    assert card.folder.parent == cache / "prepared"
    monkeypatch.setattr("triform.train.prepare.prepare_shards", lambda *a, **k: pytest.fail("tokenized again"))
    monkeypatch.setattr("triform.train.prepare.train_tokenizer", lambda *a, **k: pytest.fail("trained again"))
    found = run(recipe, tmp_path / "found", report=quiet)
    assert not (tmp_path / "found/data").exists()
    assert (found.loss, found.validation_loss) == (made_there.loss, made_there.validation_loss)
    other = read_recipe(config.to_dict(recipe, hint=Recipe), ["objective.length=12"])
    with pytest.raises(pytest.fail.Exception, match="tokenized again"):
        run(other, tmp_path / "other", report=quiet)


def test_counts_and_card(data: Path) -> None:
    facts = prepare_data(cleaning(data), progress=False).to_dict()
    assert facts["read"] == 3 * len(LINES)
    assert facts["dropped"]["duplicate"] >= 20
    first, second = facts["sources"]
    assert first["kept"] + second["kept"] == facts["kept"] == facts["read"] - sum(facts["dropped"].values())
    assert sum(part["documents"] for part in facts["parts"].values()) == first["kept"] + 2 * second["kept"]
    assert first["share"] + second["share"] == pytest.approx(1, abs=1e-12)
    assert second["share"] == pytest.approx(2 / 3, abs=0.03)
    folder = Path(facts["folder"])
    card = (folder / "card.md").read_text(encoding="utf-8")
    assert f"| duplicate | {facts['dropped']['duplicate']} |" in card
    assert "weight: 2.0" in card
    picture = (folder / "card.svg").read_bytes()
    assert all(word in picture for word in (b"Length", b"Sources", b"Dropped"))
    (folder / "card.svg").unlink()
    prepare_data(cleaning(data), progress=False)
    assert (folder / "card.svg").read_bytes() == picture


def test_a_source_with_a_chinese_name_is_drawn(data: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "三国演义.txt"
    file.write_text("\n".join(LINES), encoding="utf-8")
    card = prepare_data(cleaning(data, source=str(file)), progress=False)
    assert "三国演义.txt" in (card.folder / "card.svg").read_text(encoding="utf-8")
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []


def test_the_place_is_no_part_of_what_the_data_are(data: Path, tmp_path: Path) -> None:
    here = cleaning(data, folder=str(tmp_path / "here"))
    assert prepared_folder(here.data) == tmp_path / "here"
    assert text_fingerprint(here.data) == text_fingerprint(cleaning(data).data)
    for change in ({"clean": Clean(filter=Filter(min_length=3))}, {"clean": None}, {"source": here.data.sources[0].source}):
        assert text_fingerprint(replace(here.data, **change)) != text_fingerprint(here.data)


def test_held_out_text_of_its_own_is_normalized_but_whole(data: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text("Ａ\nＡ\n", encoding="utf-8")
    clean = Clean(normalize=Normalize(half_width=True))
    _, validation = splits(replace(cleaning(data).data, clean=clean, validation_source=str(held)))
    assert validation is not None
    assert [row["text"] for row in validation] == ["A", "A"]


def test_a_source_without_weight_weighs_one(data: Path) -> None:
    recipe = cleaning(data)
    assert [each.weight for each in recipe.data.sources] == [1.0, 2.0]
    assert recipe.data.sources[0] == WeightedSource(source=str(data / "lines.txt"))
    with pytest.raises(ValueError, match=r"data\.source"):
        cleaning(data, source=[])
    with pytest.raises(ValueError, match=r"data\.clean\.filter\.symbols"):
        cleaning(data, clean={"filter": {"symbols": 2}})


def contents(folder: Path) -> dict[str, bytes]:
    """What a folder's files hold, but for the seconds that something took."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: re.sub(rb'"seconds": [\d.]+', b"", data) for name, data in found.items()}


def test_an_interrupted_preparation_is_gone_on_with(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cleaning(data)
    whole = prepare_data(recipe, progress=False)
    expected = contents(whole.folder)
    for path in sorted(whole.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    monkeypatch.setattr(shards, "COMMIT_TOKENS", 50)
    for module, name, at in ((pipeline._File, "write", 1), (pipeline, "_manifest", 0), (shards.ShardWriter, "commit", 1)):
        left, function = [at], getattr(module, name)

        def stopping(*arguments: Any, left: list[int] = left, function: Any = function) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping)
            with pytest.raises(KeyboardInterrupt):
                prepare_data(recipe, progress=False)
    prepare_data(recipe, progress=False)
    assert contents(whole.folder) == expected


def test_the_command_prints_what_it_did(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(config.to_dict(cleaning(data), hint=Recipe)), encoding="utf-8")
    assert cli.run(["data", "prepare", str(file), "--workers", "1"]) == 0
    said = capsys.readouterr().out
    assert f"{3 * len(LINES)} documents read" in said
    assert "duplicate" in said
    assert cli.run(["data", "prepare", str(file), "--json", "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] > 0
    assert cli.run(["data", "prepare", str(file), "data.clean.filter.min_length=9999"]) == 2
    assert "none of 72 documents is left (too short 72)" in capsys.readouterr().err
