"""`triform inspect`."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from triform import cli, config


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["inspect", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bert-base", "--json")
    data = json.loads(out)
    assert code == 0
    assert (data["name"], data["form"], data["parameters"]) == ("bert-base", "encoder-only", 109_482_240)
    assert config.resolve(data["config"]) == config.preset("bert-base")
    assert sum(part["parameters"] for part in data["tree"]) == data["parameters"]


def test_several_models_give_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "gpt2", "t5-small", "mixtral-8x7b", "--json")
    rows = json.loads(out)
    assert [row["form"] for row in rows] == ["decoder-only", "encoder-decoder", "decoder-only"]
    assert rows[2]["active_parameters"] < rows[2]["parameters"]


def test_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "gpt2", "decoder.depth=6", "--json")
    assert json.loads(out)["parameters"] == 124_439_808 - 6 * 7_087_872


def test_tree_folds_equal_layers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "gemma3-270m")
    assert code == 0
    assert "layers 0-4, 6-10, 12-16" in out
    assert "15 × 5,573,632" in out
    assert "layers 5, 11, 17" in out
    assert "268,098,176 parameters (268 M)" in out
    assert out.count("body.query ") == 2
    assert "shared: decoder.input.token.weight" in out


@pytest.mark.parametrize("suffix", [".json", ".yaml", ""])
def test_files_and_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str) -> None:
    where = tmp_path / f"mine{suffix}"
    if suffix:
        file = where
    else:
        where.mkdir()
        file = where / "triform.json"
    config.save(config.preset("t5-small"), file)  # JSON is YAML too
    code, out, _ = run(capsys, str(where), "--json")
    assert code == 0
    assert json.loads(out)["parameters"] == 60_506_624


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bert-bse"], "bert-base"),
        (["gpt2", "decoder.dept=6"], "depth"),
        (["gpt2", "decoder.depth=six"], "decoder.depth: expected"),
        (["gpt2", "decoder.pattern[0].attention.heads=7"], "heads: expected a divisor"),
        (["decoder.depth=6"], "a preset's name or a path"),
        (["nowhere/config.yaml"], "nowhere/config.yaml"),
        (["gpt2", "--diagram", "out.png"], ".svg"),
        (["gpt2", "--diagram", "nowhere/out.svg"], "nowhere"),
        ([], "usage"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.count("\n") == 1


def test_diagram(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "both.svg"
    code, out, _ = run(capsys, "bert-base", "gpt2", "--diagram", str(file))
    assert code == 0
    assert "both.svg" in out
    ET.parse(file)
    assert [path.name for path in tmp_path.iterdir()] == ["both.svg"]


def test_a_failure_keeps_the_old_diagram(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "both.svg"
    file.write_text("old")
    assert run(capsys, "gpt2", "no-such-model", "--diagram", str(file))[0] == 2
    assert file.read_text() == "old"


def test_torch_is_not_needed() -> None:
    code = "import sys; from triform import cli; assert cli.run(['inspect', 'gpt3-175b', '--json']) == 0; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
