"""Pictures: rows to pixels of one size, normalized; and one label for a whole picture (ViT, Dosovitskiy et al. 2021).

Shapes: B batch, C channels, S the picture's side.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from triform import config
from triform.config.spec import spec
from triform.data.shards import Shards

from .base import Batch, Sample, Samples, field_of, need
from .classification import ClassificationObjective

LARGEST = 2**26  # pixels of a picture that is read
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's those that start no other program


@spec
class Pictures:
    """How pictures are read: from the field `image`, resized to `size` by `size` pixels of `channels` (1 grey, 3 red, green, blue).

    A picture is rows of numbers from 0 to `highest`, of one or of three each; or one of Pillow's, an encoded file's bytes, or its path.
    mean, std: of the pixels as shares of `highest`, to normalize them by; one for all channels, or one each.
    """

    size: int
    image: str = "image"
    channels: int = 3
    highest: int = 255
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ValueError(f"size: expected a side of 1 to 4096 pixels, got {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels: expected 1 or 3, got {self.channels}")
        if self.highest < 1:
            raise ValueError(f"highest: expected at least 1, got {self.highest}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name}: expected one number, or one for each of the {self.channels} channels, got {getattr(self, name)}")
        if min(self.std) <= 0:
            raise ValueError(f"std: expected numbers above 0, got {list(self.std)}")

    def pixels(self, row: Mapping[str, Any]) -> np.ndarray:
        """The picture of a row: (C, S, S), 0 to 255. Raises ValueError for what is none."""
        levels = _levels(field_of(row, self.image, "image"), self.image, self.highest)
        picture = torch.from_numpy(levels).permute(2, 0, 1)[None]
        if picture.shape[1] != self.channels:
            picture = picture.mean(1, keepdim=True) if self.channels == 1 else picture.expand(-1, 3, -1, -1)
        if picture.shape[2:] != (self.size, self.size):
            picture = F.interpolate(picture, size=(self.size, self.size), mode="bilinear", antialias=True)
        return picture[0].mul(255).round().clamp(0, 255).to(torch.uint8).numpy()

    def normalized(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Pictures, each of C S S numbers from 0 to 255, as a model reads them: (B, C, S, S)."""
        x = torch.from_numpy(np.stack(pictures).astype(np.float32)).view(-1, self.channels, self.size, self.size) / 255
        return (x - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)

    def check_patches(self, stack: config.Stack, name: str) -> None:
        """Raise ValueError unless a stack reads pictures of this size."""
        read = stack.input
        need(isinstance(read, config.Patches), name, "a stack that reads Patches", f"one that reads {type(read).__name__}")
        assert isinstance(read, config.Patches)
        need(read.image == self.size, name, f"pictures of the model's side (objective.size: {read.image})", self.size)
        need(read.channels == self.channels, name, f"pictures of the model's channels (objective.channels: {read.channels})", self.channels)

    def facts(self) -> dict[str, Any]:
        """How to prepare a picture for a model that was trained so."""
        return {"image_size": self.size, "channels": self.channels, "image_mean": list(self.mean), "image_std": list(self.std)}


def _levels(value: Any, name: str, highest: int) -> np.ndarray:
    """A picture as shares of its highest level: (height, width, 1 or 3)."""
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):  # as Hugging Face datasets have it
        value = value.get("bytes") or value["path"]
    if isinstance(value, bytes | str | Path):
        try:
            value, highest = open_picture(value, LARGEST), 255
        except ValueError as error:
            raise ValueError(f"a row of the data has in its field {name!r} {error}") from None
    elif hasattr(value, "convert"):
        value, highest = value.convert("RGB"), 255
    try:
        levels = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        levels = np.empty(0, dtype=np.float32)
    if levels.ndim == 2:
        levels = levels[:, :, None]
    if levels.ndim != 3 or levels.shape[2] not in (1, 3) or not levels.size or levels.size > 3 * LARGEST:
        raise ValueError(f"a row of the data has in its field {name!r} no picture; expected rows of numbers, or of three each")
    if not (levels.min() >= 0 and levels.max() <= highest):
        found = f"{levels.min():g} to {levels.max():g}"
        raise ValueError(f"a picture of the data has pixels from {found}; expected 0 to {highest} (objective.highest)")
    return levels / highest


def open_picture(source: bytes | str | Path, largest: int = LARGEST) -> Any:
    """A picture of Pillow's in red, green and blue, upright, from an encoded file's bytes or from its path.

    Raises ValueError for what is none, and for one of more than `largest` pixels, before it is decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            width, height = image.size
            if width * height <= largest:
                return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise whatever they stumble upon
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no picture that can be read ({why})") from None
    raise ValueError(f"a picture of {width} by {height} pixels; expected at most {largest:,} in all")


@spec
class ImageClassification(Pictures):
    """The field `label` judged from a picture. `labels` are the names, in the order of the head's scores."""

    labels: tuple[str, ...]
    label: str = "label"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise ValueError(f"labels: expected at least two different names, got {list(self.labels)}")

    def longest(self) -> dict[str, tuple[str, int]]:
        """A picture's patches are the model's to count."""
        return {"encoder": ("size", 1)}


class ImageClassificationObjective(ClassificationObjective):
    """In: pictures and the numbers of their labels. Out: inputs (B, C, S, S), normalized, and labels (B,)."""

    spec: ImageClassification  # type: ignore[assignment]
    reads_text = False

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Sequence[int]]]:
        """Columns "image", C S S numbers from 0 to 255, and "label", one number."""
        return [{"image": self.spec.pixels(row).ravel(), "label": self.judgement(row)} for row in rows]  # type: ignore[dict-item]

    def sizes(self) -> dict[str, int]:
        return {"image": 256, "label": len(self.spec.labels)}

    def samples(self, shards: Shards) -> Samples:
        return Samples(np.ones(len(shards), dtype=np.int64), lambda index: dict(shards[index]))

    def collate(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]]) -> Batch:
        labels = np.concatenate([sample["label"] for sample in samples]).astype(np.int64)
        return Batch(self.spec.normalized([sample["image"] for sample in samples]), torch.from_numpy(labels))

    def check(self, model: config.Model) -> None:
        need(model.form == "encoder-only", "ImageClassification", "a model that is encoder-only", f"one that is {model.form}")
        assert isinstance(model, config.Transformer)
        self.spec.check_patches(model.last, "ImageClassification")
        self.check_head(model)

    def task(self) -> dict[str, Any]:
        return {"objective": "ImageClassification", "labels": list(self.spec.labels), **self.spec.facts()}
