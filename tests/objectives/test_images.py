"""Pictures: how they are read, one label for each, and texts beside them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from collating import batch, samples, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from triform import config, nn
from triform.objectives import Contrastive, ImageClassification, build_objective
from triform.objectives.contrastive import contrastive_loss
from triform.objectives.images import Pictures
from triform.text import Tokenizer

LABELS = ("dark", "light")


def rows(count: int, side: int = 6) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"image": rng.integers(0, 17, (side, side)).tolist(), "label": LABELS[i % 2], "text": "天下大势分久必合"[: i % 7 + 1]}
        for i in range(count)
    ]


def tower(channels: int = 1, image: int = 6) -> config.Stack:
    read = config.Patches(image=image, patch=2, channels=channels)
    block = config.Block(attention=tiny.attention(), feed_forward=tiny.FEED_FORWARD)
    return config.Stack(width=tiny.WIDTH, depth=1, input=read, pattern=(block,), norm=config.LayerNorm())


def towers(tokenizer: Tokenizer, end: int | None = None, **change: Any) -> config.DualEncoder:
    spec = tiny.stack(tiny.attention(mask="causal"), position="learned", depth=1)
    text = config.with_overrides(config.Stack, spec, {"input.vocab_size": tokenizer.vocab_size, "input.segments": 0})
    return config.DualEncoder(text=text, image=tower(**change), width=8, end_token=tokenizer.eos if end is None else end)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), size=st.integers(1, 16), given_channels=st.sampled_from([0, 1, 3]),
    channels=st.sampled_from([1, 3]), highest=st.integers(1, 300), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_picture_gets_the_size_and_the_channels(
    height: int, width: int, size: int, given_channels: int, channels: int, highest: int, seed: int
) -> None:
    shape = (height, width, given_channels) if given_channels else (height, width)
    values = np.random.default_rng(seed).integers(0, highest + 1, shape)
    found = Pictures(size=size, channels=channels, highest=highest).pixels({"image": values.tolist()})
    assert found.shape == (channels, size, size)
    assert found.dtype == np.uint8
    mean = values.mean() / highest * 255
    flat = Pictures(size=size, channels=channels, highest=highest).pixels({"image": np.full(shape, values.flat[0]).tolist()})
    assert np.abs(flat - values.flat[0] / highest * 255).max() <= 1
    if (height, width) == (size, size) and channels == max(1, given_channels):
        wanted = values.reshape(size, size, -1).transpose(2, 0, 1) / highest * 255
        assert np.abs(found - wanted).max() <= 0.51
        assert abs(found.mean() - mean) <= 0.51


def test_files_and_pillow_pictures_are_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    image = Image.fromarray(values)
    file = tmp_path / "a.png"
    image.save(file)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    wanted = values.transpose(2, 0, 1)
    pictures = Pictures(size=5, highest=16)  # which is for rows of numbers alone
    for value in (image, file, str(file), stream.getvalue(), {"bytes": stream.getvalue(), "path": None}):
        assert np.array_equal(pictures.pixels({"image": value}), wanted)


def test_pixels_are_normalized(tmp_path: Path) -> None:
    spec = ImageClassification(size=2, channels=3, labels=LABELS, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    data = [{"image": [[[255, 0, 51], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]], "label": "light"}]
    made = batch(*samples(spec, trained("characters"), data, tmp_path))
    assert made.inputs.shape == (1, 3, 2, 2)
    assert torch.allclose(made.inputs[0, :, 0, 0], torch.tensor([1.8, -0.8, -0.1]), atol=1e-6)
    assert made.labels.tolist() == [1]
    assert (made.tokens, made.count) == (1, 1)


@torch.no_grad()
def test_the_loss_of_pictures_is_that_of_each_alone(tmp_path: Path) -> None:
    """Tolerance 1e-5 a picture; another label is the control."""
    objective, found = samples(ImageClassification(size=6, channels=1, highest=16, labels=LABELS), trained("characters"), rows(5), tmp_path)
    made = batch(objective, found)
    assert made.labels.tolist() == [0, 1, 0, 1, 0]
    spec = config.Transformer(encoder=tower(), head=config.Classify(labels=2))
    objective.check(spec)
    model = tiny.build(spec)
    alone = [F.cross_entropy(model(made.inputs[i : i + 1]).logits, made.labels[i : i + 1]) for i in range(5)]
    got = float(objective.loss(model, made).total)
    assert abs(got - float(sum(alone))) <= 5e-5
    assert abs(got - float(F.cross_entropy(model(made.inputs).logits, 1 - made.labels, reduction="sum"))) > 1e-2


@torch.no_grad()
def test_equal_texts_share_their_pictures() -> None:
    """The loss is that of targets shared out among equal texts; tolerance 1e-5. For texts with other scores it is not."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for texts in ([0, 1, 0, 2], [0, 1, 2, 3]):
        logits = torch.randn(4, 4, generator=generator)[texts]
        same = torch.tensor([[a == b for a in (0, 1, 0, 2)] for b in (0, 1, 0, 2)]).float()
        shared = same / same.sum(1, keepdim=True)
        wanted = -sum((shared * x.log_softmax(1)).sum() for x in (logits, logits.T)) / 2
        found.append(abs(float(contrastive_loss(logits) - wanted)))
    assert found[0] <= 1e-5
    assert found[1] > 1e-2


@torch.no_grad()
def test_texts_and_pictures_meet(characters: Tokenizer, tmp_path: Path) -> None:
    """Against vectors of each text and picture alone, by the formula of the paper's figure 3; tolerance 1e-4 of the sum.

    Pictures out of place are the control; a picture of an equal text counts as found.
    """
    objective, found = samples(Contrastive(size=6, channels=1, highest=16, length=8), characters, rows(9), tmp_path)
    made = batch(objective, found)
    assert made.target is not None
    assert made.inputs.shape == (9, 8)
    assert made.mask is not None
    for i, row in enumerate(rows(9)):
        assert made.inputs[i][made.mask[i]].tolist() == [characters.bos, *characters.encode(row["text"])[:6], characters.eos]
    objective.check(towers(characters))
    model = tiny.build(towers(characters))
    text = torch.cat([model.embed_text(made.inputs[i : i + 1][:, : int(made.mask[i].sum())]) for i in range(9)])
    image = torch.cat([model.embed_image(made.target[i : i + 1]) for i in range(9)])
    logits = model.temperature.exp() * text @ image.T
    losses = [
        -sum(float(x.log_softmax(1)[i, i]) for x in (scores, scores.T) for i in range(9)) / 2 for scores in (logits, logits.roll(1, 0))
    ]
    got = objective.loss(model, made)
    assert abs(float(got.total) - losses[0]) <= 1e-4 * losses[0]
    assert abs(float(got.total) - losses[1]) > 1e-2
    keys = [row["text"][:6] for row in rows(9)]
    assert len(set(keys)) < 9
    assert got.metrics["accuracy"] == sum(keys[i] == keys[int(logits[i].argmax())] for i in range(9))


def test_the_temperature_is_bounded(characters: Tokenizer, tmp_path: Path) -> None:
    objective, found = samples(Contrastive(size=6, channels=1, highest=16, length=8), characters, rows(4), tmp_path)
    model = nn.build(towers(characters), seed=0)
    losses = []
    for value in (100.0, 1000.0):
        torch.nn.init.constant_(model.temperature, math.log(value))
        losses.append(float(objective.loss(model, batch(objective, found)).total.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"picture": [[1]]}, "no field 'image' for the image; it has picture"),
        ({"image": [[17]]}, r"pixels from 17 to 17; expected 0 to 16 \(objective.highest\)"),
        ({"image": [[float("nan")]]}, "expected 0 to 16"),
        ({"image": [[1, 2], [3]]}, "has in its field 'image' no picture"),
        ({"image": [[[1, 2]]]}, "no picture"),
        ({"image": []}, "no picture"),
        ({"image": b"not a file"}, "no picture that can be read"),
        ({"image": "no-such.png"}, "no picture that can be read"),
    ],
)
def test_what_is_no_picture(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        Pictures(size=4, channels=1, highest=16).pixels(row)
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr("triform.objectives.images.LARGEST", 399)
    with pytest.raises(ValueError, match="a picture of 20 by 20 pixels; expected at most 399"):
        Pictures(size=4).pixels({"image": tmp_path / "a.png"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"size": 0}, "size: expected a side of 1 to 4096"),
        ({"channels": 2}, "channels: expected 1 or 3"),
        ({"highest": 0}, "highest: expected at least 1"),
        ({"mean": (0.5, 0.5)}, "mean: expected one number, or one for each of the 3"),
        ({"std": (0.0,)}, "std: expected numbers above 0"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Pictures(**{"size": 8} | fields)


def test_models_that_cannot(characters: Tokenizer) -> None:
    judge = build_objective(ImageClassification(size=6, channels=1, labels=LABELS), None)
    for spec, says in (
        (tiny.encoder(head=config.Classify(labels=2)), "a stack that reads Patches, got one that reads Tokens"),
        (config.Transformer(encoder=tower(3), head=config.Classify(labels=2)), r"objective.channels: 3\), got 1"),
        (config.Transformer(encoder=tower(image=8), head=config.Classify(labels=2)), r"objective.size: 8\), got 6"),
        (config.Transformer(encoder=tower(), head=config.Classify(labels=3)), "a head of 2 labels, got 3"),
        (tiny.decoder(), "a model that is encoder-only"),
    ):
        with pytest.raises(ValueError, match=says):
            judge.check(spec)
    pair = build_objective(Contrastive(size=6, channels=1, length=24), characters)
    pair.check(towers(characters))
    for other, says in (
        (towers(characters, end=3), rf"model.end_token: {characters.eos}\), got 3"),
        (towers(characters, channels=3), "objective.channels: 3"),
        (tiny.encoder(), "a DualEncoder, got a model that is encoder-only"),
    ):
        with pytest.raises(ValueError, match=says):
            pair.check(other)
    with pytest.raises(ValueError, match="a length of at most the text tower's 24 positions, got 25"):
        build_objective(Contrastive(size=6, channels=1, length=25), characters).check(towers(characters))
