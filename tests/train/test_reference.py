"""What the model that a run begins with says of its samples: worked out once, kept, and made again where it is gone."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recipes import plain, recipe
from runs import Killed, assert_same, killed_at, outcome, quiet, stopped_and_resumed
from safetensors.numpy import load_file

from triform import hub
from triform.data.shards import Shards
from triform.objectives import Preference, build_objective
from triform.train import Recipe, read_metrics, read_recipe, run


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of a language, to begin from."""
    folder = tmp_path_factory.mktemp("begun")
    run(recipe("Causal", data, steps=2), folder / "run", report=quiet)
    return folder / "run" / "model"


def preferring(begun: Path, data: Path, **train: Any) -> Recipe:
    settings = plain("DPO", data, start=str(begun), **train)
    return read_recipe(settings | {"tokenizer": {"path": str(begun)}, "objective": {"kind": "Preference", "length": 24}})


def test_the_first_step_costs_log_2(begun: Path, data: Path, tmp_path: Path) -> None:
    """Within 1e-4 a pair, as the model still is its reference; after some steps it is not."""
    run(preferring(begun, data, rate=0.01, warmup=0), tmp_path / "run", report=quiet)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[0]["log_ratio"] == pytest.approx(0, abs=1e-3)
    assert abs(rows[-1]["loss"] - math.log(2)) > 1e-3
    names = {"accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_log_prob", "chosen_tokens", "log_ratio"}
    assert names <= rows[0].keys()


def test_it_is_what_the_model_says(begun: Path, data: Path, tmp_path: Path) -> None:
    """Tolerance 1e-4 nats, of every sample that the steps visit; the others have none."""
    made = preferring(begun, data, steps=2, batch=2)
    run(made, tmp_path / "run", report=quiet)
    found = load_file(tmp_path / "run" / "reference" / "train.safetensors")
    model, tokenizer = hub.load(begun)
    objective = build_objective(Preference(length=24), tokenizer)
    samples = objective.samples(Shards.open(tmp_path / "run" / "data" / "train"))
    with torch.no_grad():
        wanted = [objective.reference(model.eval(), objective.collate([samples[i]], [(0, i)])) for i in range(len(samples))]
    for name, values in found.items():
        told = ~np.isnan(values)
        assert told.sum() == 4 < len(values)
        assert values[told] == pytest.approx(np.array([float(one[name]) for one in wanted])[told], abs=1e-4)
    assert not np.allclose(found["reference_chosen"], found["reference_rejected"], equal_nan=True)


def test_it_is_kept_and_made_again_where_it_is_gone(begun: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = preferring(begun, data)
    run(made, tmp_path / "whole", report=quiet)
    folder = tmp_path / "stopped"
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(3))
    shutil.rmtree(folder / "reference")
    stopped_and_resumed(made, folder, [4])
    assert_same(outcome(tmp_path / "whole"), outcome(folder))
    for name in ("train", "validation"):
        files = [place / "reference" / f"{name}.safetensors" for place in (tmp_path / "whole", folder)]
        assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(Killed):
        run(made, tmp_path / "third", report=killed_at(3))
    monkeypatch.setattr("triform.train.loop.reference", lambda *_, **__: pytest.fail("worked out again"))
    assert run(made, tmp_path / "third", resume=True, report=quiet).finished


def test_an_adapters_reference_is_the_frozen_model(begun: Path, data: Path, tmp_path: Path) -> None:
    """It is asked without the adapter: of a run that goes on, whose adapter has learned, the same as of one that begins."""
    made, folder = preferring(begun, data, adapter={"rank": 2, "dropout": 0.1}, rate=0.05, warmup=0), tmp_path / "stopped"
    run(made, tmp_path / "whole", report=quiet)
    rows = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(rows[-1]["loss"] - math.log(2)) > 1e-3
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(3))
    shutil.rmtree(folder / "reference")
    assert run(made, folder, resume=True, report=quiet).finished
    files = [place / "reference" / "train.safetensors" for place in (tmp_path / "whole", folder)]
    assert files[0].read_bytes() == files[1].read_bytes()
    whole, stopped = (load_file(place / "model" / "adapter_model.safetensors") for place in (tmp_path / "whole", folder))
    assert whole.keys() == stopped.keys()
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)


def test_a_damaged_file_is_made_again(begun: Path, data: Path, tmp_path: Path) -> None:
    made, folder = preferring(begun, data), tmp_path / "run"
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(3))
    file = folder / "reference" / "train.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert run(made, folder, resume=True, report=quiet).finished
    assert file.read_bytes() == whole


def test_another_model_to_begin_from_is_told(begun: Path, data: Path, tmp_path: Path) -> None:
    start = shutil.copytree(begun, tmp_path / "start")
    made, folder = preferring(start, data), tmp_path / "run"
    with pytest.raises(Killed):
        run(made, folder, report=killed_at(3))
    run(recipe("Causal", data, steps=1), tmp_path / "other", report=quiet)
    shutil.copy(tmp_path / "other" / "model" / "model.safetensors", start)
    shutil.rmtree(folder / "reference")
    with pytest.raises(ValueError, match=r"train\.start is not the model this run began with"):
        run(made, folder, resume=True, report=quiet)


@pytest.mark.parametrize("name", ["smoothing", "z_loss"])
def test_settings_that_have_no_place(name: str, begun: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"train\.{name}: expected 0 with the objective Preference"):
        run(preferring(begun, data, **{name: 0.1}), tmp_path / "run", report=quiet)


def test_a_bad_row_is_told_with_its_file_and_line(begun: Path, data: Path, tmp_path: Path) -> None:
    lines = (data / "preferences.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:4], '{"prompt": "天下", "chosen": "大势"}', *lines[4:]]) + "\n", "utf-8")
    settings = plain("DPO", data, steps=2) | {"data": {"source": str(tmp_path / "bad.jsonl"), "validation": 0}}
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 5: expected an answer in 'rejected'"):
        run(read_recipe(settings), tmp_path / "run", report=quiet)
    settings["data"] |= {"skip_bad": True}
    assert run(read_recipe(settings), tmp_path / "run", report=quiet).finished
