"""Pictures judged by a classifier, and by texts; made ready as transformers does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triform import config, hub
from triform.cli import run
from triform.generate import PictureFormat, classify_pictures
from triform.objectives import build_objective
from triform.objectives.contrastive import Contrastive
from triform.objectives.images import ImageClassification, open_picture

from .conftest import built, stack, tokenizer_of

LABELS = ["圆", "方", "角"]
TEXTS = ["话说天下大势", "酒店很干净", "The quick brown fox"]
BLOCK = config.Block(attention=config.Attention(heads=2), feed_forward=config.FeedForward(hidden=48))


def classifier(channels: int = 3) -> Any:
    patches = config.Patches(image=32, patch=8, channels=channels)
    tower = config.Stack(width=24, depth=1, input=patches, pattern=(BLOCK,), norm=config.LayerNorm())
    return built(config.Transformer(encoder=tower, head=config.Classify(labels=3)))


def chooser(tokenizer: Any) -> Any:
    image = config.Stack(width=24, depth=1, input=config.Patches(image=32, patch=8), pattern=(BLOCK,), norm=config.LayerNorm())
    text = stack(tokenizer.vocab_size, config.Attention(heads=2, mask="causal"), learned=12)
    return built(config.DualEncoder(text=text, image=image, width=16, end_token=tokenizer.eos))


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Smooth enough for a change of size to mean something, and with sharp edges too."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    small.paste((255, 0, 10), (width // 3, height // 4, width // 2, height // 2))
    return small


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


SIZES = [(50, 40), (33, 90), (32, 32), (20, 17), (200, 3)]


@pytest.mark.parametrize(
    ("processor", "said", "both"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}}, False),
        ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}, False),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, True),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 2}, True),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_read_as_transformers_reads_them(processor: str, said: dict[str, Any], both: bool, size: tuple[int, int]) -> None:
    theirs = getattr(transformers, processor)(**said)
    spec = chooser(tokenizer_of("byte-bpe")).config if both else classifier().config
    reading = PictureFormat.of(spec, json.loads(theirs.to_json_string()))
    image = picture(1, *size)
    found = reading.normalized(reading.read(encoded(image))[None])[0]
    expected = torch.as_tensor(np.array(theirs(image)["pixel_values"][0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((found.flip(-1) - expected).abs().max()) > 1e-2


def test_they_are_read_as_in_training() -> None:
    image = picture(2, 60, 44)
    recipe = ImageClassification(size=32, labels=("a", "b"), mean=(0.3, 0.4, 0.5), std=(0.2, 0.3, 0.4))
    reading = PictureFormat.of(classifier().config, recipe.facts())
    assert torch.equal(reading.read(encoded(image)), torch.from_numpy(recipe.pixels({"image": image})))
    assert torch.equal(reading.normalized(reading.read(encoded(image))[None]), recipe.normalized([recipe.pixels({"image": image})]))
    grey = PictureFormat.of(classifier(1).config, {"image_size": 32, "image_mean": [0.5], "image_std": [0.5]})
    expected = ImageClassification(size=32, channels=1, labels=("a", "b")).pixels({"image": image})
    assert torch.equal(grey.read(encoded(image)), torch.from_numpy(expected))


def test_a_picture_is_turned_as_its_camera_was_held() -> None:
    image = picture(3, 60, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned = open_picture(encoded(image, exif=exif))
    assert turned.size == (30, 60)
    assert np.array_equal(np.asarray(turned), np.asarray(image.rotate(-90, expand=True)))


@pytest.mark.parametrize("names", [LABELS, None])
def test_a_classifier_gives_its_probabilities(names: list[str] | None) -> None:
    model, reading = classifier(), PictureFormat.of(classifier().config, {})
    files = [encoded(picture(seed, 40, 30)) for seed in range(5)]
    told: list[int] = []
    found = classify_pictures(model, files, names, batch_size=2, on_batch=told.append)
    assert told == [2, 4, 5]
    for file, one in zip(files, found, strict=True):
        with torch.inference_mode():
            expected = model(reading.normalized(reading.read(file)[None])).logits[0].softmax(-1)
        assert list(one.scores) == (names or ["0", "1", "2"])
        assert list(one.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert one.label == list(one.scores)[int(expected.argmax())]
    assert found[0].score != pytest.approx(found[1].score, abs=1e-4)
    several = classify_pictures(model, files[:1], names, problem="multi_label_classification")[0]
    assert sum(several.scores.values()) != pytest.approx(1, abs=1e-3)


def test_texts_that_describe_a_picture() -> None:
    tokenizer = tokenizer_of("byte-bpe")
    model = chooser(tokenizer)
    reading = PictureFormat.of(model.config, {})
    files = [encoded(picture(seed, 40, 30)) for seed in range(3)]
    found = classify_pictures(model, files, [*TEXTS, TEXTS[0], "长" * 30], tokenizer=tokenizer)
    objective = build_objective(Contrastive(size=32, length=12), tokenizer)
    framed = [objective.encode([{"text": text, "image": picture(0, 4, 4)}])[0]["text"] for text in [*TEXTS, "长" * 30]]
    for file, one in zip(files, found, strict=True):
        with torch.inference_mode():
            pixels = reading.normalized(reading.read(file)[None])
            scores = torch.cat([model(torch.tensor([list(ids)]), target=pixels).logits for ids in framed])[:, 0]
        assert list(one.scores) == [*TEXTS, "长" * 30]
        assert list(one.scores.values()) == pytest.approx(scores.softmax(0).tolist(), abs=1e-4)
    assert found[0].scores != pytest.approx(found[1].scores, abs=1e-4)


WHOLE = encoded(picture(0, 9, 9))


@pytest.mark.parametrize(
    "bad",
    [b"", b"no picture", WHOLE[:99], WHOLE[:40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"],
    ids=["empty", "text", "cut", "head", "program"],
)
def test_what_is_no_picture_is_told(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"^picture 2: no picture that can be read \(.+\)$"):
        classify_pictures(classifier(), [encoded(picture(0, 9, 9)), bad])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"]), st.data())
def test_damaged_pictures_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(encoded(picture(4, 24, 18), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    said = ""
    try:
        pixels = PictureFormat(size=16).read(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]), 10_000)
    except ValueError as error:
        said = str(error)
    if said:
        assert said.startswith(("no picture that can be read", "a picture of "))
        assert "\n" not in said
    else:
        assert pixels.shape == (3, 16, 16)


def test_a_picture_that_unfolds_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="a picture of 3000 by 3000 pixels; expected at most 1,000,000"):
        open_picture(encoded(Image.new("1", (3000, 3000))), 1_000_000)
    wide = PictureFormat(size=32, shortest=32).read(encoded(Image.new("RGB", (40_000, 1))))
    assert wide.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"resample": 1}, "resample: expected 2"),
        ({"do_rescale": False}, "expected pixels scaled"),
        ({"rescale_factor": 1.0}, "expected pixels scaled"),
        ({"image_mean": [0.5, 0.5]}, "image_mean: expected 3 numbers"),
        ({"do_center_crop": True, "size": 300, "crop_size": 288}, "crop_size 32"),
    ],
)
def test_a_preparation_that_is_not_read_here_is_refused(said: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PictureFormat.of(classifier().config, said)


# The command


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    tokenizer = tokenizer_of("byte-bpe")
    hub.save(classifier(), None, tmp_path / "seer", task={"labels": LABELS})
    hub.save(chooser(tokenizer), tokenizer, tmp_path / "chooser")
    for number in range(2):
        picture(number, 40, 30).save(tmp_path / f"{number}.png")
    (tmp_path / "seer/preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    return {name: str(tmp_path / name) for name in ("seer", "chooser", "0.png", "1.png")}


def test_the_command_judges_files(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    files = [folders["0.png"], folders["1.png"]]
    assert run(["classify", folders["seer"], *files, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    reading = PictureFormat.of(classifier().config, {"image_mean": [0.1, 0.2, 0.3]})
    expected = classify_pictures(classifier(), files, LABELS, reading=reading)
    assert [row["picture"] for row in rows] == files
    assert [row["scores"] for row in rows] == [pytest.approx(one.scores, abs=1e-5) for one in expected]
    assert rows[0]["scores"] != pytest.approx(classify_pictures(classifier(), files, LABELS)[0].scores, abs=1e-5)
    assert run(["classify", folders["chooser"], *files, "--label", TEXTS[0], "--label", TEXTS[1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[2] for line in lines] == files
    assert {line.split("\t")[0] for line in lines} <= set(TEXTS)


def test_other_commands_say_what_fits(folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for command, text in (("embed", "a"), ("generate", "a"), ("fill", "[MASK]")):
        assert run([command, folders["seer"], text]) == 2
        assert "`triform classify` fits it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["seer", "nowhere.png"], "nowhere.png: expected a picture's file"),
        (["seer", "0.png", "--label", "a"], "--label: expected a model of pictures and texts"),
        (["chooser", "0.png"], "--label: expected at least two texts"),
        (["chooser", "0.png", "--label", "a", "--label", "a"], "--label: expected at least two texts"),
    ],
)
def test_mistakes_are_one_line(folders: dict[str, str], capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert run(["classify", *(folders.get(word, word) for word in arguments)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
