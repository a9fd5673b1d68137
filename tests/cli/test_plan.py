"""`triform plan`."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from recipes import plain, write_data

from triform import cli
from triform.train import calibrate as calibrating
from triform.train import read_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "120M", "--tokens", "1.2B", "--hardware", "A100", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["parameters"]["total"] == data["parameters"]["active"] == 120_000_000
    assert data["flops"]["rule_of_thumb"] == 8.64e17
    assert data["flops"]["exact"] > 8e17
    assert round(data["time"]["ideal_seconds"]) == 2769
    assert data["time"]["expected_seconds"] > 2769
    for kind in ("training", "inference"):
        assert data["memory"][kind]["total"] == sum(data["memory"][kind]["parts"].values()) > 0


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "120M", "--tokens", "1.2B", "--hardware", "A100")
    assert code == 0
    for text in ("8.64e+17", "46.2 min", "activations", "published rule", "stands for it"):
        assert text in out


def test_explain_gives_formula_numbers_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "gpt2", "--explain")
    assert "rule of thumb: C = 6 P D" in out
    assert "P = 124,439,808" in out
    assert "https://arxiv.org/abs/2203.15556" in out


def test_overrides_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "gpt2", "decoder.depth=6", "--json")
    assert json.loads(out)["parameters"]["total"] == 124_439_808 - 6 * 7_087_872


def test_a_recipe_brings_its_own_setting(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, str(EXAMPLES / "storyteller.yaml"), "--json", "--hardware", "A100")
    found, setting = json.loads(out), json.loads(out)["setting"]
    assert code == 0
    assert (setting["batch"], setting["sequence"], setting["optimizer"]) == (32, 128, "muon")
    steps = read_recipe(EXAMPLES / "storyteller.yaml").train.steps
    assert (found["steps"], found["tokens"]) == (steps, steps * 32 * 128)
    _, out, _ = run(capsys, str(EXAMPLES / "storyteller.yaml"), "train.steps=7", "--batch", "4", "--json", "--hardware", "A100")
    assert (json.loads(out)["steps"], json.loads(out)["tokens"]) == (7, 7 * 4 * 128)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    """Writes a tiny recipe of an objective, and says where."""
    write_data(tmp_path)

    def write(kind: str) -> str:
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(plain(kind, tmp_path), allow_unicode=True), encoding="utf-8")
        return str(tmp_path / f"{kind}.yaml")

    return write


def test_a_recipe_of_rewards_brings_the_time_of_its_answers(capsys: pytest.CaptureFixture[str], recipe: Callable[[str], str]) -> None:
    code, out, _ = run(capsys, recipe("GRPO"), "--json", "--explain", "--hardware", "A100", "--price", "3.6")
    assert code == 0
    found = json.loads(out)
    line = next(line for line in found["explain"] if line["name"] == "time of the answers")
    assert 0 < line["value"] < found["time"]["expected_seconds"]
    assert found["cost"]["money"] == pytest.approx(found["time"]["expected_seconds"] / 1000)


def test_a_recipe_is_calibrated_on_its_data(
    capsys: pytest.CaptureFixture[str], recipe: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triform.planner.calibration.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(calibrating, "calibrate", partial(calibrating.calibrate, seconds=1))
    code, out, err = run(capsys, recipe("Causal"), "--hardware", "this", "--calibrate", "--json")
    assert (code, "Traceback" in err) == (0, False)
    assert "measured on this machine" in json.loads(out)["time"]["reason"]
    for more, told in (("data.source=nowhere.txt",), "nowhere.txt"), (("--batch", "8"), "by path, as train.batch=8"):
        code, _, err = run(capsys, recipe("Causal"), *more, "--hardware", "this", "--calibrate")
        assert (code, err.count("\n")) == (2, 1)
        assert told in err


def test_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    assert run(capsys, "t5-small", "--html", str(file))[0] == 0
    assert "Memory of training" in file.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]


def test_parallel(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "llama-7b", "--hardware", "8xA100-80G", "--batch", "2", "--sequence", "512", "--parallel", "dp=4,tp=2")
    assert code == 0
    assert "dp=4,tp=2,pp=1" in out


def test_a_budget_writes_a_recipe_that_can_be_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    code, out, _ = run(capsys, "--budget", "T4, 1h, form=encoder", "--write", str(file))
    assert code == 0
    assert "triform train" in out
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["objective"]["kind"] == "Masked"
    assert run(capsys, str(file), "--precision", "fp16", "--hardware", "T4")[0] == 0
    assert run(capsys, "--budget", "T4, 1h", "--write", str(file))[0] == 2


def test_fits(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--fits", "2GB", "--json")
    assert "distilbert-base" in {row["name"] for row in json.loads(out)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of: a model"),
        (["gpt2", "--fits", "24GB"], "expected one of: a model"),
        (["gpt2", "bert-base"], "expected one model"),
        (["120M", "decoder.depth=2"], "a size has no fields"),
        (["gpt2", "--tokens", "0"], "tokens: expected"),
        (["gpt2", "--batch", "-1"], "batch: expected"),
        (["gpt2", "--hardware", "H1000"], "did you mean H100"),
        (["gpt2", "--hardware", "8xA100", "--parallel", "dp=3"], "has 8 devices"),
        (["gpt2", "--html", "plan.pdf"], "ends in .html"),
        (["gpt2", "--write", "recipe.yaml"], "beside --budget"),
        (["gpt2", "--calibrate", "--hardware", "A100"], "only this machine"),
        (["--fits", "big"], "a size such as 24GB"),
        (["--budget", "24h"], "expected hardware"),
        (["nowhere"], "nowhere"),
    ],
)
def test_nonsense_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_no_torch_is_loaded() -> None:
    code = "import sys\nfrom triform.cli import run\nassert run(['plan', 'gpt2', '--json']) == 0\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_offloading_and_8_bits_are_planned_for_the_hardware_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def parts(*words: str) -> dict[str, int]:
        code, out, _ = run(capsys, *words, "--json")
        assert code == 0
        found: dict[str, int] = json.loads(out)["memory"]["training"]["largest"]
        return found

    plain = parts("llama-7b", "--hardware", "H100", "--batch", "1")
    assert parts("llama-7b", "--hardware", "H100", "--batch", "1", "--offload")["activations"] < 0.2 * plain["activations"]
    assert parts("llama-7b", "--hardware", "H100", "--batch", "1", "--precision", "fp8")["casts"] < 0.1 * plain["casts"]
    (tmp_path / "recipe.yaml").write_text(
        "model: storyteller\ndata: {source: sanguo}\nobjective: {kind: Causal}\ntrain: {steps: 9, precision: fp8, offload: true}\n", "utf-8"
    )
    assert parts(str(tmp_path / "recipe.yaml"), "--hardware", "H100")["overhead"] > 0  # a card's, whatever this machine has
    for card, says in (("A100-80G", "has no fp8; choose one of"), ("this", "offload: ")):
        code, _, err = run(capsys, str(tmp_path / "recipe.yaml"), "--hardware", card)
        assert code == 2
        assert says in err
        assert err.count("\n") == 1
