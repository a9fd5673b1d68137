"""Pictures at /v1/classify."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Running, judge, picture, scripted_writer, serving, viewer

from triform import config, hub, serve
from triform.generate import classify_pictures

LABELS = ["round", "square", "sharp"]
TEXTS = ["话说天下大势", "a photo of a cat"]


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    with serving(viewer("seer", LABELS), viewer("chooser"), judge("judge", config.Classify(labels=3)), body_bytes=60_000) as running:
        yield running


def coded(data: bytes, lead: str = "") -> str:
    return lead + base64.b64encode(data).decode()


def test_a_classifier_judges_them(site: Running) -> None:
    files = [picture(1), picture(2, kind="JPEG"), picture(3, 16, 16, "WEBP")]
    urls = [coded(files[0]), coded(files[1], "data:image/jpeg;base64,"), coded(files[2], "data:;base64,")]
    found = site.post("/v1/classify", {"model": "seer", "input": urls}).json()
    model = site.models.by_name["seer"].model
    expected = classify_pictures(model, files, LABELS)
    assert [one["scores"] for one in found["results"]] == [pytest.approx(one.scores, abs=1e-5) for one in expected]
    assert [one["label"] for one in found["results"]] == [one.label for one in expected]
    assert found["usage"]["total_tokens"] == 3 * 5
    assert found["results"][0]["scores"] != pytest.approx(found["results"][1]["scores"], abs=1e-5)


def test_texts_are_chosen_for_them(site: Running) -> None:
    found = site.post("/v1/classify", {"model": "chooser", "input": coded(picture(1)), "labels": TEXTS}).json()["results"][0]
    served: Any = site.models.by_name["chooser"]
    expected = classify_pictures(served.model, [picture(1)], TEXTS, tokenizer=served.tokenizer)[0]
    assert found["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert found["label"] == expected.label


def test_they_are_listed_for_what_they_do(site: Running) -> None:
    cards = {card["id"]: card for card in site.get("/v1/models").json()["data"]}
    assert (cards["seer"]["use"], cards["seer"]["labels"], cards["seer"]["form"]) == ("see", LABELS, "encoder-only")
    assert (cards["chooser"]["use"], cards["chooser"]["labels"], cards["chooser"]["form"]) == ("see", None, "dual-encoder")
    assert 'triform_running{model="seer"}' in site.get("/metrics").text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"model": "seer", "input": "no base64!"}, "input: picture 0: expected an encoded picture as base64"),
        ({"model": "seer", "input": "https://example.org/cat.png"}, "input: picture 0: expected an encoded picture as base64"),
        ({"model": "seer", "input": coded(b"no picture")}, "input: picture 0: no picture that can be read"),
        ({"model": "seer", "input": coded(b"%!PS-Adobe-3.0 EPSF-3.0\n")}, "input: picture 0: no picture that can be read"),
        ({"model": "seer", "input": []}, "input: expected 1 to 64 pictures"),
        ({"model": "seer", "input": [""] * 65}, "input: expected 1 to 64 pictures"),
        ({"model": "seer", "input": coded(picture(1)), "labels": TEXTS}, "labels: expected none"),
        ({"model": "chooser", "input": coded(picture(1))}, "labels: expected at least two"),
        ({"model": "chooser", "input": coded(picture(1)), "labels": ["a", "a"]}, "labels: expected at least two"),
        ({"model": "judge", "input": "a", "labels": TEXTS}, "labels: expected none"),
        ({"model": "judge", "input": "a", "labels": ["a"]}, "labels"),
    ],
)
def test_mistakes_are_told(site: Running, body: Any, says: str) -> None:
    found = site.post("/v1/classify", body)
    assert found.status_code == 400
    assert found.json()["error"]["message"].startswith(says)


def test_a_model_of_pictures_reads_no_texts(site: Running) -> None:
    error = site.post("/v1/embeddings", {"model": "seer", "input": "a"}).json()["error"]
    assert error["message"] == "seer cannot embed; ask it at /v1/classify, with a picture"


def test_a_server_opens_them_from_folders(tmp_path: Path) -> None:
    both = viewer("chooser")
    hub.save(viewer("seer", LABELS).model, None, tmp_path / "seer", task={"labels": LABELS})
    hub.save(both.model, both.tokenizer, tmp_path / "chooser")
    opened = [serve.open_model(str(tmp_path / name)) for name in ("seer", "chooser")]
    with serving(*opened, scripted_writer("yes")) as server:  # type: ignore[arg-type]
        assert server.post("/v1/classify", {"input": coded(picture(1))}).json()["results"][0]["label"] in LABELS
        found = server.post("/v1/classify", {"model": "chooser", "input": coded(picture(1)), "labels": TEXTS}).json()
        assert set(found["results"][0]["scores"]) == set(TEXTS)
