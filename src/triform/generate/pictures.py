"""Pictures judged: by a classifier (ViT), or by which of some texts describes them best (CLIP, Radford et al. 2021).

Shapes: B batch, C channels, S the picture's side, L labels, T tokens of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from triform import config, hub
from triform.hub.fields import read_json
from triform.nn import DualEncoder, Transformer
from triform.objectives.images import LARGEST, Pictures, open_picture
from triform.text import Tokenizer
from triform.text.framing import opening

from .classify import Judgement, Problem, chances, judgement, names_of
from .forms import Module, evaluating, longest, padded, use_of

Source = bytes | str | Path
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class PictureFormat:
    """How a picture becomes what a model reads.

    size: the side of what it reads, in pixels. channels: 1 (grey) or 3.
    shortest: a picture's shorter side is scaled to so many pixels, and the middle is cut out; None: both sides are scaled to `size`.
    resample: Pillow's filter to scale by, 2 (bilinear) or 3 (bicubic), as public models have it; None: as `objectives.images` does.
    mean, std: by which the pixels, as shares of the highest, are normalized: one for all channels, or one each.
    """

    size: int
    channels: int = 3
    shortest: int | None = None
    resample: Literal[2, 3] | None = 2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @classmethod
    def open(cls, spec: config.Model, folder: Path) -> PictureFormat:
        """That of a model in a folder; see `of`."""
        task, file = hub.task(folder), folder / "preprocessor_config.json"
        return cls.of(spec, task if "image_mean" in task or not file.is_file() else read_json(file))

    @classmethod
    def of(cls, spec: config.Model, said: Mapping[str, Any]) -> PictureFormat:
        """That of a model, by what its folder says: as our own runs do (`hub.task`), or as a preprocessor_config.json does.

        Where it says nothing, as the public ViT and CLIP have it. Raises ValueError for what is not read here.
        """
        stack = spec.image if isinstance(spec, config.DualEncoder) else spec.encoder
        assert stack is not None
        assert isinstance(stack.input, config.Patches)
        size, channels, clip = stack.input.image, stack.input.channels, isinstance(spec, config.DualEncoder)
        if "image_size" in said:
            return cls(size=size, channels=channels, resample=None, mean=tuple(said["image_mean"]), std=tuple(said["image_std"]))
        resample = said.get("resample", 3 if clip else 2)
        if resample not in (2, 3):
            raise ValueError(f"preprocessor_config.json: resample: expected 2 (bilinear) or 3 (bicubic), got {resample!r}")
        if channels not in (1, 3):
            raise ValueError(f"expected a model of pictures with 1 or 3 channels, got {channels}")
        if abs(float(said.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-3 or said.get("do_rescale") is False:
            raise ValueError("preprocessor_config.json: expected pixels scaled to 0 to 1 (do_rescale, rescale_factor 1/255)")
        mean = said.get("image_mean") or (_CLIP_MEAN if clip else [0.5] * channels)
        std = said.get("image_std") or (_CLIP_STD if clip else [0.5] * channels)
        if said.get("do_normalize") is False:
            mean, std = (0.0,), (1.0,)
        for name, value in (("image_mean", mean), ("image_std", std)):
            if len(value) not in (1, channels):
                raise ValueError(f"preprocessor_config.json: {name}: expected {channels} numbers, got {value!r}")
        shortest = _shortest(said, size) if said.get("do_center_crop", clip) else None
        return cls(size=size, channels=channels, shortest=shortest, resample=resample, mean=tuple(mean), std=tuple(std))

    def read(self, source: Source, largest: int = LARGEST) -> Tensor:
        """The pixels (C, S, S), uint8, of an encoded picture's bytes, or of a file. Raises ValueError for what is no picture."""
        image = open_picture(source, largest)
        if self.resample is None:
            return torch.from_numpy(Pictures(size=self.size, channels=self.channels).pixels({"image": image}))
        width, height = self.size, self.size
        if self.shortest is not None:
            image = _strip(image)
            width, height = (int(self.shortest * side / min(image.size)) for side in image.size)
        if self.channels == 1:
            image = image.convert("L")
        pixels = torch.from_numpy(np.array(image.resize((width, height), self.resample))).view(height, width, self.channels)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return pixels[top : top + self.size, left : left + self.size].permute(2, 0, 1)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, S, S), uint8, as the model reads them."""
        mean, std = torch.tensor(self.mean).view(-1, 1, 1), torch.tensor(self.std).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std


def _shortest(said: Mapping[str, Any], size: int) -> int | None:
    """To what the shorter side is scaled before the middle of `size` pixels is cut out; None where both sides are scaled."""
    found, crop = said.get("size", size), said.get("crop_size", size)
    if isinstance(found, dict):
        if "shortest_edge" not in found:
            return None
        found = found["shortest_edge"]
    if isinstance(crop, dict):
        crop = crop.get("height")
    if crop != size or not isinstance(found, int) or not size <= found <= 8 * size:
        wanted = f"size.shortest_edge from {size} on and crop_size {size}"
        raise ValueError(f"preprocessor_config.json: expected {wanted}, got {found} and {crop}")
    return found


def _strip(image: Any) -> Any:
    """The middle of a picture that is more than 100 times as long as wide; what lies outside is cut off anyway."""
    width, height = min(image.width, 100 * image.height), min(image.height, 100 * image.width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def classify_pictures(
    model: Module,
    pictures: Sequence[Source | Tensor],
    labels: Sequence[str] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    reading: PictureFormat | None = None,
    problem: Problem | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], None] | None = None,
) -> list[Judgement]:
    """Judge each picture: its file, its bytes, or its pixels as `PictureFormat.read` gives them.

    labels: the names of a classifier's labels, in the order of its scores (left out: "0", "1" and so on); for a model of pictures and
        texts the texts to choose from, such as "a photo of a cat", which its tokenizer reads.
    reading: how a picture becomes what the model reads; left out, as the public ViT and CLIP do. problem: as in `classify`.
    on_batch: called with the number of pictures done, after each batch.

    Raises ValueError for a model that reads no pictures, for what is no picture, and for labels that do not fit.
    """
    if use_of(model.config) != "see":
        raise ValueError("pictures: expected a model of pictures with a Classify head, or of pictures and texts, as ViT and CLIP are")
    reading = reading or PictureFormat.of(model.config, {})
    results: list[Judgement] = []
    with evaluating(model) as device:
        names, scores_of = _scorer(model, tokenizer, labels, device)
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            pixels = torch.stack([one if isinstance(one, Tensor) else _read(one, reading, start + i) for i, one in enumerate(some)])
            inputs = reading.normalized(pixels).to(device, next(model.parameters()).dtype)
            found = chances(scores_of(inputs).float(), problem if isinstance(model, Transformer) else "single_label_classification")
            results += [judgement(names, row) for row in found.tolist()]
            if on_batch is not None:
                on_batch(len(results))
    return results


def _read(source: Source, reading: PictureFormat, number: int) -> Tensor:
    try:
        return reading.read(source)
    except ValueError as error:
        raise ValueError(f"{f'picture {number + 1}' if isinstance(source, bytes) else source}: {error}") from None


def _scorer(
    model: Module, tokenizer: Tokenizer | None, labels: Sequence[str] | None, device: torch.device
) -> tuple[list[str], Callable[[Tensor], Tensor]]:
    """The names of the labels, and what scores pictures (B, C, S, S) by them: (B, L)."""
    if isinstance(model, Transformer):
        assert isinstance(model.config.head, config.Classify)

        def head(pixels: Tensor) -> Tensor:
            scores = model(pixels).logits
            assert isinstance(scores, Tensor)
            return scores

        return names_of(model.config.head, labels), head
    assert isinstance(model, DualEncoder)
    names = list(dict.fromkeys(labels or ()))
    if tokenizer is None or len(names) < 2:
        what = "its tokenizer" if tokenizer is None else "at least two different texts to choose from"
        raise ValueError(f"labels: expected {what}, as this model judges which text describes a picture")
    ids, mask = padded(_texts(model.config, tokenizer, names), tokenizer.pad or 0, device)
    texts, sharpness = model.embed_text(ids, mask), model.temperature.exp()
    return names, lambda pixels: sharpness * model.embed_image(pixels) @ texts.T


def _texts(spec: config.DualEncoder, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts, framed and cut as in training: [BOS] text [EOS]."""
    before, eos = opening(tokenizer), [] if tokenizer.eos is None else [tokenizer.eos]
    limits = [limit for limit in (tokenizer.length, longest(spec.text)) if limit is not None]
    room = None if not limits else min(limits) - len(before) - len(eos)
    return [[*before, *ids[:room], *eos] for ids in tokenizer.encode_batch(texts, plain=True)]
