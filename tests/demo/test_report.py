"""The demo's report."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import demo_results
import pytest

from triform.demo.charts import attention_map, bars, line_chart
from triform.demo.report import STAGES, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that every tag is closed, and gathers text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):  # type: ignore[no-untyped-def]
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # type: ignore[no-untyped-def]
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):  # type: ignore[no-untyped-def]
        assert self.open.pop() == tag

    def handle_data(self, data):  # type: ignore[no-untyped-def]
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def page(folder: Path) -> tuple[str, Page]:
    text = write_report(folder).read_text(encoding="utf-8")
    return text, Page(text)


def test_all_three_stages(tmp_path: Path) -> None:
    demo_results.write(tmp_path)
    text, found = page(tmp_path)
    for word in (
        "5.412 bits per character", "5.873 bits per character", "✓ met", "✗ missed", "却说曹操引兵至",
        "At or above the linear model on held-out reviews: missed by 0.50 points",
        "TF-IDF and logistic regression", "2 min 11 s", "encoder-decoder", "Cross-attention", "layer 2, head 3",
        f"{demo_results.storyteller()['parameters']:,}",
    ):  # fmt: skip
        assert word in found.text
    assert "has not run yet" not in found.text
    svgs = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(svgs) == 1 + 5 + 3 + 5 + 6  # all together, masks, one by one, charts, attention maps
    for svg in svgs:
        ET.fromstring(svg)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    demo_results.write(tmp_path)
    text, found = page(tmp_path)
    assert not {"link", "img", "iframe", "image", "use", "object"} & set(found.tags)
    assert not [value for name, value in found.attributes if name == "src"]
    assert all(value and value.startswith("#") for name, value in found.attributes if name == "href")
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


@pytest.mark.parametrize("missing", STAGES)
def test_a_missing_stage_is_said_to_be_missing(tmp_path: Path, missing: str) -> None:
    demo_results.write(tmp_path, *(name for name in STAGES if name != missing))
    _, found = page(tmp_path)
    assert found.text.count("has not run yet") == 2
    assert f"{missing.capitalize()}This stage has not run yet" in found.text


def test_no_stage_at_all(tmp_path: Path) -> None:
    _, found = page(tmp_path)
    assert found.text.count("This stage has not run yet") == 3


HOSTILE = "<script>alert(1)</script>\"'&"


def hostile(value):  # type: ignore[no-untyped-def]
    """The same data with every text but the ones that choose something replaced by hostile text."""
    if isinstance(value, dict):
        kept = ("config", "better", "stage")
        return {key: part if key in kept else hostile(part) for key, part in value.items()} | (
            {HOSTILE: HOSTILE} if "optimizer" in value else {}
        )
    if isinstance(value, list):
        return [hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


@pytest.mark.parametrize("name", STAGES)
def test_everything_from_the_data_is_escaped(tmp_path: Path, name: str) -> None:
    demo_results.write(tmp_path, name)
    file = tmp_path / name / "result.json"
    clean = page(tmp_path)[1].tags.count("script")
    file.write_text(json.dumps(hostile(json.loads(file.read_text(encoding="utf-8")))), encoding="utf-8")
    text, found = page(tmp_path)
    assert found.tags.count("script") == clean == 1
    assert HOSTILE in found.text
    assert "<script>alert" not in text


def test_an_unescaped_text_is_seen() -> None:
    assert Page(f"<p>{HOSTILE}</p>").tags.count("script") == 1


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda stage: stage.pop("figures") and stage.pop("title"), "title"),
        (lambda stage: stage.update(parameters="many"), "parameters"),
        (lambda stage: stage["config"]["decoder"].update(depth=0), "decoder.depth"),
        (lambda stage: stage["attention"][0]["rows"].pop(), "rows of"),
        (lambda stage: stage["masks"].append({"name": "x"}), "grid"),
        (lambda stage: stage["figures"][0].update(better="bigger"), "figures"),
    ],
)
def test_a_broken_result_is_named_and_keeps_the_old_report(tmp_path: Path, break_it, says: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "report.html").write_text("old")
    stage = demo_results.storyteller()
    break_it(stage)
    demo_results.write(tmp_path, "storyteller")
    (tmp_path / "storyteller" / "result.json").write_text(json.dumps(stage), encoding="utf-8")
    with pytest.raises(ValueError, match=r"result\.json.*" + says) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "report.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "storyteller"]


def test_not_json(tmp_path: Path) -> None:
    demo_results.write(tmp_path, "critic")
    (tmp_path / "critic" / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="expected JSON"):
        write_report(tmp_path)


def test_what_differs_from_the_reference_is_marked(tmp_path: Path) -> None:
    demo_results.write(tmp_path, "translator")
    text, _ = page(tmp_path)
    assert "曹操引兵至<mark>此</mark>壁" in text
    assert "玄德与关羽张飞桃园结义</span> ✓" in text


def test_long_curves_are_thinned_and_holes_left_out() -> None:
    points = [[step, float("nan") if step == 7 else 1 / (step + 1)] for step in range(50_000)]
    svg = line_chart([{"name": "loss", "points": points}], "nats")
    assert len(svg) < 20_000
    assert "nan" not in svg
    assert line_chart([{"name": "loss", "points": []}], "nats") == ""
    ET.fromstring(line_chart([{"name": "one", "points": [[5, 2.0]]}], "nats").split("<div")[0])


def test_curves_of_one_run_share_a_chart(tmp_path: Path) -> None:
    demo_results.write(tmp_path, "critic")
    text, found = page(tmp_path)
    assert text.count('class="chart"') == 3
    assert "without pretraining" in found.text


def test_bars_mark_ours_and_the_best() -> None:
    figures = [
        {"label": "ours", "value": 5.0, "unit": "bits", "better": "lower", "ours": True, "note": ""},
        {"label": "theirs", "value": 10.0, "unit": "bits", "better": "lower", "ours": False, "note": "n-gram"},
    ]
    html = bars(figures)
    assert re.findall(r'class="bar( ours)?".*?width:([\d.]+)%', html) == [(" ours", "50.00"), ("", "100.00")]
    assert html.index("best") < html.index("theirs")
    higher = bars([figure | {"better": "higher"} for figure in figures])
    assert higher.index("theirs") < higher.index("best") < higher.index(">ours ")


def test_attention_map_tells_values_and_leaves_out_nothing_seen() -> None:
    svg = attention_map("layer 1", ["中", "\n"], ["guo", " "], [[0.75, 0.25], [1.0, 0.0]])
    assert re.findall(r"<title>(.*?)</title>", svg) == ["中 → guo: 75.0 %", "中 → ␣: 25.0 %", "⏎ → guo: 100.0 %"]
    with pytest.raises(ValueError, match="2 rows of 2"):
        attention_map("layer 1", ["中", "国"], ["a", "b"], [[1.0], [1.0]])
