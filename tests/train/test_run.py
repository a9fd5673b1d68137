"""A run from beginning to end: what it learns, writes and shows, and what is left after a start that failed."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recipes import LINES, model, plain, recipe, stack
from safetensors.torch import load_file

from triform import config, hub
from triform.nn import build
from triform.objectives.on_policy import longest_rows
from triform.planner.machine import matmul_peak
from triform.train import Recipe, read_metrics, read_recipe, run
from triform.train.metrics import PANELS, progress_bar


def quiet(row: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize("kind", ["Causal", "SequenceToSequence"])
def test_a_few_lines_are_learned_by_heart(kind: str, data: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": x, "source": x, "target": x}) + "\n" for x in LINES[:4]), encoding="utf-8")
    settings = plain(kind, data, steps=120, batch=4, rate=1e-2, warmup=5, validate_every=120, checkpoint_every=120)
    settings["model"] = model(*(("decoder",) if kind == "Causal" else ("encoder", "decoder")), width=32)
    settings["data"] = {"source": str(lines), "validation_source": str(lines)}
    settings["tokenizer"]["vocab_size"] = 50
    settings["objective"] |= {"length": 32} | ({"target_length": 32} if kind == "SequenceToSequence" else {})
    result = run(read_recipe(settings), tmp_path / "run", report=quiet)
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
    assert first > 3.0
    assert result.validation_loss is not None
    assert result.validation_loss < 0.6
    assert result.validation_accuracy is not None
    assert result.validation_accuracy > 0.85


def test_what_a_run_leaves(data: Path, tmp_path: Path, curves: None) -> None:
    folder, rows = tmp_path / "run", []
    result = run(recipe("Causal", data), folder, report=rows.append)
    names = {path.name for path in folder.iterdir()}
    files = {"recipe.yaml", "plan.json", "metrics.jsonl", "curves.svg", "result.json", "forecast.json"}
    assert names == files | {"checkpoints", "model", "data", "tokenizer"}
    assert json.loads((folder / "result.json").read_text("utf-8")) == asdict(result)
    assert (folder / "curves.svg").read_text("utf-8").lstrip().startswith("<?xml")
    assert "matplotlib.pyplot" not in sys.modules
    drawn = {name for names in PANELS.values() for name in names}
    assert {"loss", "validation_loss", "gradient_norm", "rate", "tokens_per_second"} == drawn
    assert drawn <= {name for row in read_metrics(folder / "metrics.jsonl") for name in row}
    metrics = read_metrics(folder / "metrics.jsonl")
    steps, held = [r for r in metrics if "loss" in r], [r for r in metrics if "validation_loss" in r]
    fields = {"step", "loss", "rate", "gradient_norm", "tokens", "tokens_per_second", "peak_share", "seconds"}
    fields |= {"memory", "peak_memory"}
    assert all(0 < row["memory"] <= row["peak_memory"] for row in steps)
    assert all(row.keys() == fields for row in steps)
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in held] == [2, 4, 6]
    assert all(row.keys() == {"step", "validation_loss", "validation_accuracy"} for row in held)
    assert steps[-1]["tokens"] == result.tokens
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    loaded, tokenizer = hub.load(folder / "model")
    assert tokenizer is not None
    assert loaded.config.decoder.input.vocab_size == tokenizer.vocab_size == 120
    assert result.parameters == sum(p.numel() for p in loaded.parameters())


def test_export_of_the_best_and_of_the_last(data: Path, tmp_path: Path) -> None:
    made = recipe("Causal", data, steps=12, validate_every=1, checkpoint_every=1, keep=20, rate=0.3, warmup=3, schedule="constant")
    run(made, tmp_path / "last", report=quiet)
    run(replace(made, train=replace(made.train, export="best")), tmp_path / "best", report=quiet)
    held = [row["validation_loss"] for row in read_metrics(tmp_path / "best" / "metrics.jsonl") if "validation_loss" in row]
    best = held.index(min(held)) + 1
    assert best < 12, "the rate is meant to be too high for the last step to be the best"
    exported = load_file(tmp_path / "best" / "model" / "model.safetensors")
    at_best = load_file(tmp_path / "best" / "checkpoints" / f"step-{best:08d}" / "model.safetensors")
    assert all(torch.equal(exported[n], at_best[n]) for n in exported)
    last = load_file(tmp_path / "last" / "model" / "model.safetensors")
    assert not all(torch.equal(exported[n], last[n]) for n in exported)


def started(kind: str, data: Path, start: Path, **fields: Any) -> Recipe:
    settings = plain(kind, data, steps=1, rate=1e-30, weight_decay=0.0, start=str(start))
    settings["tokenizer"] = {"path": str(start)}
    return read_recipe(settings | fields)


def test_pretrained_stacks_under_a_new_head(data: Path, tmp_path: Path) -> None:
    run(recipe("Masked", data), tmp_path / "base", report=quiet)
    base = tmp_path / "base" / "model"
    run(started("Classification", data, base), tmp_path / "judge", report=quiet)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "judge" / "model"))
    stacks = [name for name in theirs if name.startswith("encoder.")]
    assert len(stacks) > 5
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-12) for name in stacks)
    assert ours["head.out.weight"].shape == (2, 16)
    assert hub.task(tmp_path / "judge" / "model")["labels"] == ["negative", "positive"]
    run(started("Classification", data, tmp_path / "judge" / "model"), tmp_path / "again", report=quiet)
    again = load_file(tmp_path / "again" / "model" / "model.safetensors")
    assert torch.allclose(again["head.out.weight"], ours["head.out.weight"], atol=1e-12)


def test_a_start_with_another_tokenizer_or_shape_is_refused(data: Path, tmp_path: Path) -> None:
    run(recipe("Masked", data), tmp_path / "base", report=quiet)
    base = tmp_path / "base" / "model"
    other = {"kind": "characters", "vocab_size": 40}
    with pytest.raises(ValueError, match="has another tokenizer than this run"):
        run(started("Classification", data, base, tokenizer=other), tmp_path / "a")
    wide = model("encoder", width=32, head={"kind": "Classify", "labels": 2})
    with pytest.raises(ValueError, match=r"in the checkpoint, and \(120, 32\) in the model"):
        run(started("Classification", data, base, model=wide), tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_rows_beyond_the_tokenizer_s_stay(data: Path, tmp_path: Path) -> None:
    """Public checkpoints often have a token table rounded up."""
    run(recipe("Causal", data), tmp_path / "base", report=quiet)
    small, tokenizer = hub.load(tmp_path / "base" / "model")
    assert tokenizer is not None
    rows = tokenizer.vocab_size + 9
    wide = build(small.config, [f"decoder.input.vocab_size={rows}"], seed=0)
    hub.save(wide, tokenizer, tmp_path / "wide")
    run(started("Causal", data, tmp_path / "wide", model=str(tmp_path / "wide")), tmp_path / "tuned", report=quiet)
    tuned = hub.load(tmp_path / "tuned" / "model")[0].decoder.input.token.weight
    assert tuned.shape[0] == rows
    assert torch.allclose(tuned, wide.decoder.input.token.weight, atol=1e-12)
    assert not torch.allclose(tuned, wide.decoder.input.token.weight.flip(0), atol=1e-12)  # control


def test_without_held_out_text(data: Path, tmp_path: Path) -> None:
    settings = plain("Causal", data, export="best")
    settings["data"]["validation"] = 0
    result = run(read_recipe(settings), tmp_path / "run", report=quiet)
    assert result.validation_loss is None
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def _set(path: str, value: Any) -> Any:
    def change(settings: dict[str, Any], folder: Path) -> None:
        *way, last = path.split(".")
        for step in way:
            settings = settings[step]
        settings[last] = value

    return change


def _text(name: str, text: str) -> Any:
    def change(settings: dict[str, Any], folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")
        settings["data"]["source"] = str(folder / name)

    return change


def _no_segmenter(settings: dict[str, Any], folder: Path) -> None:
    settings["model"] = model("encoder")
    settings["objective"] = {"kind": "Masked", "length": 8, "whole_words": True, "segmenter": "thulac"}


def _encoder(settings: dict[str, Any], folder: Path) -> None:
    settings["model"] = model("encoder")


def _unlisted(settings: dict[str, Any], folder: Path) -> None:
    _text("labels.jsonl", '{"text": "好书", "label": "neutral"}\n' * 3 + '{"text": "很好", "label": "positive"}\n')(settings, folder)
    settings["model"] = model("encoder", head={"kind": "Classify", "labels": 2})
    settings["objective"] = {"kind": "Classification", "labels": ["negative", "positive"]}
    settings["objective"]["length"] = 8
    settings["tokenizer"] = {"kind": "characters", "vocab_size": 9}
    settings["data"]["validation"] = 0


MISTAKES = {
    "missing source": (_set("data.source", "nowhere.txt"), "nowhere.txt: no such file"),
    "empty corpus": (_text("empty.txt", "\n\n"), "empty; there is no text in it"),
    "vocabulary": (_set("tokenizer.vocab_size", 5000), "larger than this text allows"),
    "missing tokenizer": (_set("tokenizer", {"path": "nowhere"}), "nowhere: expected a model's folder or file, a name"),
    "length": (_set("objective.length", 33), "objective.length: .* 32 learned positions of the decoder, got up to 33"),
    "wrong form": (_encoder, "objective Causal: expected a model that is decoder-only"),
    "label": (_unlisted, "label 'neutral': expected one of negative, positive"),
    "field": (_set("objective", {"kind": "Causal", "text": "body", "length": 8}), "corpus is empty|no field 'body'"),
    "segmenter": (_no_segmenter, "no segmenter is named 'thulac'"),
    "transform": (_set("data.transform", ["upside-down"]), "no transform is named 'upside-down'"),
    "start": (_set("train.start", "nowhere"), "train.start: .*expected a model's folder"),
    "size": (_set("model", "llama-65b"), "a step of this recipe takes"),
    "no held-out row": (_set("data.validation", 1e-9), "validation part is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("existed", [False, True])
def test_a_start_that_fails_leaves_nothing_behind(name: str, existed: bool, data: Path, tmp_path: Path) -> None:
    change, says = MISTAKES[name]
    settings = plain("Causal", data)
    own = tmp_path / "own"
    own.mkdir()
    change(settings, own)
    folder = tmp_path / "runs" / "first"
    if existed:
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=says) as caught:
        run(read_recipe(settings), folder)
    assert "\n" not in str(caught.value)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if own not in (path, *path.parents))
    assert left == (["runs", "runs/first", "runs/first/notes.txt"] if existed else [])


def test_too_long_a_sequence_is_refused_before_anything_is_read(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triform.train.loop.prepare", lambda *a, **k: pytest.fail("prepared"))
    monkeypatch.setattr("triform.train.loop.text_fingerprint", lambda *a: pytest.fail("read"))
    for kind, side in (("Masked", "encoder"), ("SpanCorruption", "encoder"), ("SequenceToSequence", "encoder")):
        settings = plain(kind, data)
        settings["objective"]["length"] = 40
        with pytest.raises(ValueError, match=f"objective.length: .* 32 learned positions of the {side}"):
            run(read_recipe(settings), tmp_path / "run")
    settings = plain("SequenceToSequence", data)
    settings["objective"]["target_length"] = 33
    with pytest.raises(ValueError, match=r"objective\.target_length: .* learned positions of the decoder"):
        run(read_recipe(settings), tmp_path / "run")


@pytest.mark.parametrize("name", ["tokenizer", "data", "model", "checkpoints", "metrics.jsonl"])
def test_what_is_no_run_is_not_written_over(name: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"holds {name}, which a run would write over"):
        run(recipe("Causal", data), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        run(recipe("Causal", data), tmp_path / "file")


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(data: Path, tmp_path: Path) -> None:
    made, folder = recipe("Causal", data, checkpoint_every=1, steps=400, rate=1e30, warmup=0, keep=2), tmp_path / "run"
    with pytest.raises(ValueError, match=r"lower train\.rate") as caught:
        run(made, folder, report=quiet)
    assert "\n" not in str(caught.value)
    assert not (folder / "result.json").exists()


def test_an_interrupted_preparation_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, folder = recipe("Causal", data), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("triform.train.prepare.prepare_shards", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(made, folder, report=quiet)
    before = (folder / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    assert run(made, folder, resume=True, report=quiet).finished
    assert (folder / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before


ROW = {"step": 1, "loss": 2.5, "tokens_per_second": 1234.0, "peak_share": 0.25, "validation_loss": 2.25, "validation_accuracy": 0.5}
SHOWN = "loss 2.500  validation 2.250  accuracy 50.0 %  1,234 tokens/s  25 % of peak"


def test_off_a_terminal_a_line_is_shown_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, *(float(i) for i in range(1, 101))])
    monkeypatch.setattr("triform.train.metrics.time.monotonic", lambda: next(now))
    with progress_bar(100, 0, None) as report:
        for step in range(1, 101):
            report(ROW | {"step": step})
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out
    assert lines[0] == f"step 1/100  {SHOWN}  1:39 left"
    assert lines[-1] == f"step 100/100  {SHOWN}  0:00 left"
    assert 10 <= len(lines) <= 12
    assert "\x1b" not in err


def test_on_a_terminal_a_bar_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    with progress_bar(10, 4, None) as report:
        report(ROW | {"step": 5})
    _, err = capsys.readouterr()
    assert "5/10" in err
    assert all(part in err for part in ("loss 2.500", "1,234 tokens/s", "25 % of peak", "left"))


def test_the_peak_is_measured_even_when_one_product_takes_longer_than_there_is_time() -> None:
    assert 1e6 < matmul_peak("fp32", side=256, seconds=0.0) < 1e15


# Recipes


def test_a_recipe_goes_through_its_file(data: Path, tmp_path: Path) -> None:
    for kind in ("Causal", "Masked", "SpanCorruption", "SequenceToSequence", "Classification"):
        made = read_recipe(plain(kind, data), ["train.rate=0.02", "model.init.std=0.03"])
        file = tmp_path / f"{kind}.yaml"
        file.write_text(yaml.safe_dump(config.to_dict(made, hint=Recipe), allow_unicode=True), encoding="utf-8")
        assert read_recipe(file) == made


def test_overrides(data: Path) -> None:
    made = read_recipe(
        plain("Causal", data),
        ["train.steps=200", " model.decoder.depth = 6", "data.validation=3", "objective.length=9", "set={decoder.width: 32}"],
    )
    assert (made.train.steps, made.data.validation, made.objective.length) == (200, 3, 9)
    spec = made.architecture(77)
    assert isinstance(spec, config.Transformer)
    assert spec.decoder is not None
    assert isinstance(spec.decoder.input, config.Tokens)
    assert (spec.decoder.depth, spec.decoder.width, spec.decoder.input.vocab_size) == (6, 32, 77)


@pytest.mark.parametrize(
    ("change", "overrides", "says"),
    [
        (_set("train.stepz", 3), [], "train.stepz: expected one of the keys .* did you mean 'steps'"),
        (_set("train.steps", "many"), [], "train.steps: expected a whole number, got 'many'"),
        (_set("objective", {"kind": "Guess"}), [], "objective.kind: expected one of Causal"),
        (_set("model", "storytellr"), [], "model: no preset is named 'storytellr'.*storyteller"),
        (_set("model", {"kind": "Transformer", "decoder": stack(width=15)}), [], "model: .*heads: expected a divisor of the width 15"),
        (_set("set", {"decoder.dept": 3}), [], "model: decoder.dept: expected one of"),
        (_set("train.seed", -1), [], "train.seed: expected a whole number from 0"),
        (_set("data.validation", 1.5), [], "data.validation: expected a share below 1"),
        (None, ["train.steps"], "expected path=value"),
        (None, ["train.steps=[1"], "expected a YAML value"),
        (None, ["model.decoder.depth=[1"], "expected a YAML value"),
        (None, ["model.decoder.depth=0"], "decoder.depth: expected at least 1"),
        (None, ["trian.steps=3"], "trian: expected one of"),
    ],
)
def test_mistakes_in_recipes_are_named(change: Any, overrides: list[str], says: str, data: Path) -> None:
    settings = plain("Causal", data)
    if change:
        change(settings, data)
    with pytest.raises(ValueError, match=says) as caught:
        read_recipe(settings, overrides)
    assert "\n" not in str(caught.value)


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_read_and_their_models_resolve(file: Path) -> None:
    data = yaml.safe_load(file.read_text("utf-8"))
    if made_by := re.fullmatch(r"runs/([\w-]+)/model", str(data["model"])):  # the model of another example's run
        data["model"] = config.to_dict(read_recipe(file.with_name(f"{made_by[1]}.yaml")).architecture(4321), hint=config.Model)
    made = read_recipe(data)
    form = made.architecture(4321).form
    assert longest_rows(made.objective, form)


def test_there_are_examples() -> None:
    assert {"storyteller", "critic", "critic-pretrain", "translator"} <= {file.stem for file in EXAMPLES}
