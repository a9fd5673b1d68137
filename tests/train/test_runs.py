"""Runs are listed and compared in whatever state they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipes import recipe, write_data
from runs import Killed, killed_at, quiet

from triform.cli import run as command
from triform.train import comparison as shown
from triform.train import find_runs, read_metrics, run
from triform.train.runs import compare, read_run
from triform.train.state import held, is_running


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, one of another rate, and one that was killed at step 5 of 6."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triform.train.loop.plot_curves", lambda folder: folder)
        run(recipe("Causal", folder / "data"), folder / "runs" / "first", report=quiet)
        run(recipe("Causal", folder / "data", rate=0.01, curriculum={}), folder / "runs" / "more" / "second", report=quiet)
        with pytest.raises(Killed):
            run(recipe("Masked", folder / "data"), folder / "runs" / "third", report=killed_at(5))
    return folder / "runs"


def test_all_runs_below_a_folder_are_found_once(runs: Path) -> None:
    found = {Path(one.name).name: one for one in find_runs(runs, runs / "more", runs / "first")}
    assert sorted(found) == ["first", "second", "third"]
    assert len(find_runs(runs, runs)) == 3
    assert [Path(one.name).name for one in find_runs(runs)] == ["third", "second", "first"]
    first, third = found["first"], found["third"]
    rows = read_metrics(runs / "first" / "metrics.jsonl")
    result = json.loads((runs / "first" / "result.json").read_text("utf-8"))
    plan = json.loads((runs / "first" / "plan.json").read_text("utf-8"))
    assert (first.state, first.form, first.objective) == ("finished", "decoder-only", "Causal")
    assert (first.step, first.steps, first.parameters, first.tokens) == (6, 6, result["parameters"], result["tokens"])
    assert (first.loss, first.validation_loss) == (result["loss"], result["validation_loss"])
    assert first.best == min(row["validation_loss"] for row in rows if "validation_loss" in row)
    assert first.tokens_per_second == pytest.approx(result["tokens"] / result["seconds"], rel=1e-9)
    shares = [row["peak_share"] for row in rows if "peak_share" in row]
    assert first.peak_share is not None
    assert min(shares) <= first.peak_share <= max(shares)
    assert first.forecast_seconds == plan["time"]["expected_seconds"]
    assert first.left is None
    assert (third.state, third.objective, third.step, third.steps) == ("interrupted", "Masked", 5, 6)


def test_a_run_that_is_going_on_is_seen_and_left_alone(runs: Path) -> None:
    with held(runs / "third"):
        assert is_running(runs / "third")
        going = read_run(runs / "third")
        assert going.state == "running"
        assert going.seconds is not None
        assert going.left == pytest.approx(going.seconds / 5, rel=1e-9)
        with pytest.raises(ValueError, match="a run is going on here"):
            run(recipe("Masked", runs.parent / "data"), runs / "third", resume=True)
    assert read_run(runs / "third").state == "interrupted"
    assert not (runs / "third" / ".run.lock").exists()


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from triform.train.state import held\n"
    code += "with held(Path(sys.argv[1])): print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    assert is_running(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / ".run.lock").exists()
    assert not is_running(tmp_path)


HALVES: dict[str, Any] = {
    "nothing but a recipe": lambda place: [
        shutil.rmtree(path) if path.is_dir() else path.unlink() for path in place.iterdir() if path.name != "recipe.yaml"],
    "a plan cut short": lambda place: (place / "plan.json").write_text('{"form": "deco', encoding="utf-8"),
    "a plan that is none": lambda place: (place / "plan.json").write_text("[1]", encoding="utf-8"),
    "metrics cut short": lambda place: (place / "metrics.jsonl").write_text(
        "\n".join((place / "metrics.jsonl").read_text("utf-8").splitlines()[:3]) + '\n{"step": 4, "lo', encoding="utf-8"),
    "a result cut short": lambda place: (place / "result.json").write_text("{", encoding="utf-8"),
    "a forecast cut short": lambda place: (place / "forecast.json").write_text("", encoding="utf-8"),
    "an empty recipe part": lambda place: (place / "recipe.yaml").write_text("model: gpt2\nobjective: null\ntrain: 3\n", encoding="utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", HALVES)
def test_half_written_folders_are_read_as_far_as_they_go(name: str, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(runs / "first", place)
    HALVES[name](place)
    (found,) = find_runs(tmp_path)
    assert found.name == str(place)
    if name == "metrics cut short":
        assert (found.step, found.state) == (2, "finished")
    if name in ("nothing but a recipe", "a result cut short"):
        assert found.state == "interrupted"
    if name == "nothing but a recipe":
        assert (found.step, found.loss, found.form, found.objective, found.steps) == (0, None, None, "Causal", 6)
    made = compare([place, runs / "first"])
    assert shown.page(made).count("<svg") == 1
    assert json.dumps(made.to_dict())


def test_what_is_no_run_is_told(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder of runs, found none"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected the folder of a run, with a recipe\.yaml"):
        compare([runs / "first", tmp_path])
    with pytest.raises(ValueError, match="at least two runs to compare, got 1"):
        compare([runs / "first"])
    (tmp_path / "recipe.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"recipe\.yaml: expected YAML"):
        find_runs(tmp_path)
    assert find_runs(runs / "first" / "model") == []


def test_the_differences_of_recipes_are_named_and_nothing_else(runs: Path) -> None:
    found = compare([runs / "first", runs / "more" / "second"])
    assert found.differences == {"train.rate": [None, 0.01], "train.curriculum": [None, {}]}
    assert shown.labels(found) == ["first", "second"]
    third = compare([runs / "first", runs / "more" / "second", runs / "third"])
    assert third.differences["objective.kind"] == ["Causal", "Causal", "Masked"]
    assert "train.steps" not in third.differences
    same = compare([runs / "first", runs / "first"])
    assert same.differences == {}
    assert "Nothing: they are runs of the same recipe" in shown.page(same)


def test_the_page_overlays_the_curves_and_needs_nothing_from_elsewhere(runs: Path) -> None:
    text = shown.page(compare([runs / "first", runs / "more" / "second"]))
    assert text.startswith("<!doctype html>")
    assert text.count("<svg") == 1
    assert text.count("validation loss over time") == 1
    assert text.count(">second<") >= 4
    assert "train.rate" in text
    assert "src=" not in text
    assert "<script" not in text


def test_the_commands(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["runs", str(runs)]) == 0
    plain = capsys.readouterr().out
    assert command(["runs", "list", str(runs)]) == 0
    assert capsys.readouterr().out == plain
    assert [line.split()[0].rsplit("/", 1)[1] for line in plain.splitlines()[1:]] == ["third", "second", "first"]
    assert "decoder-only" in plain
    assert "6 of 6" in plain
    assert command(["runs", str(runs), "--sort", "name", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(row["name"]).name for row in told] == ["first", "second", "third"]
    assert command(["runs", str(runs), "--sort", "loss", "--json"]) == 0
    losses = [row["loss"] for row in json.loads(capsys.readouterr().out)]
    assert losses == sorted(losses)
    two = [str(runs / "first"), str(runs / "more" / "second")]
    assert command(["runs", "compare", *two, "--html", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert "train.rate" in out
    assert "default" in out
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert command(["runs", "compare", *two, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["differences"]["train.rate"] == [None, 0.01]


def test_mistakes_of_the_commands_are_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (["runs", str(tmp_path)], "no runs here; `triform train RECIPE` makes one"),
        (["runs", str(runs), "--sort", "beauty"], "--sort: expected one of name, state"),
        (["runs", "compare", str(runs / "first")], "expected at least two runs"),
        (["runs", "compare", str(runs / "first"), str(runs / "third"), "--html", "page.txt"], "expected a name that ends in .html"),
    ):
        assert command(words) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1


def test_listing_loads_no_torch(runs: Path) -> None:
    code = "import sys; from triform.cli import run; run(['runs', sys.argv[1], '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(runs)], stdout=subprocess.DEVNULL).returncode == 0


def test_a_long_recipe_of_parts_is_compared_by_its_leaves(runs: Path, tmp_path: Path) -> None:
    for name, weight in (("a", 1.0), ("b", 2.0)):
        settings = yaml.safe_load((runs / "first" / "recipe.yaml").read_text("utf-8"))
        settings["data"]["source"] = [{"source": "x.txt", "weight": weight}, "y.txt"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert compare([tmp_path / "a", tmp_path / "b"]).differences == {"data.source[0].weight": [1.0, 2.0]}


def test_two_threads_cannot_share_a_folder(tmp_path: Path) -> None:
    said: list[str] = []

    def second() -> None:
        try:
            with held(tmp_path):
                said.append("in")
        except ValueError as error:
            said.append(str(error))

    with held(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    second()
    assert "a run is going on here" in said[0]
    assert said[1] == "in"
