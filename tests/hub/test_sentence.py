"""Sentence encoders in the layout of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import reference

from triform import config, hub
from triform.hub import sentence

MEAN = config.Embed(pool="mean", normalize=True)


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_written_is_read(tmp_path: Path, pool: config.Pooling, normalize: bool) -> None:
    head = config.Embed(pool=pool, normalize=normalize)
    assert sentence.read_head(write(tmp_path, sentence.files(head, 16, 256))) == head
    assert sentence.longest(tmp_path) == 256


def test_newer_spellings_are_read(tmp_path: Path) -> None:
    files = sentence.files(MEAN, 16)
    for step in files["modules.json"]:
        name = step["type"].rpartition(".")[2]
        step["type"] = f"sentence_transformers.base.modules.{name.lower()}.{name}"
    write(tmp_path, files | {"1_Pooling/config.json": {"embedding_dimension": 16, "pooling_mode": "mean"}})
    assert sentence.read_head(tmp_path) == MEAN
    assert sentence.longest(tmp_path) is None


def test_a_folder_without_modules_is_none(tmp_path: Path) -> None:
    assert sentence.read_head(tmp_path) is None


def _modules(*kinds: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{kind}", "path": "1_Pooling"} for kind in kinds]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"modules.json": {}}, "expected a list"),
        ({"modules.json": []}, "got nothing"),
        ({"modules.json": [1]}, "expected Transformer, Pooling"),
        ({"modules.json": _modules("Transformer", "Pooling", "Dense")}, "got Transformer, Pooling, Dense"),
        ({"modules.json": [*_modules("Transformer"), _modules("Pooling")[0] | {"path": "../x"}]}, "got '../x'"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "nothing else is supported (here: max_tokens)"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}}, "max_tokens, mean_tokens"),
        ({"1_Pooling/config.json": {"pooling_mode": "weightedmean"}}, "here: weightedmean"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(tmp_path: Path, files: dict[str, Any], says: str) -> None:
    write(tmp_path, sentence.files(MEAN, 16) | files)
    with pytest.raises(ValueError, match=r"\A") as caught:
        sentence.read_head(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A bare BERT of the reference with the files of a sentence encoder."""
    _, folder = reference("bert-bare")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return write(tmp_path, sentence.files(MEAN, 32))


def test_vectors_are_the_means_of_the_references_states(encoder: Path) -> None:
    theirs, _ = reference("bert-bare")
    model, _ = hub.load(encoder)
    assert model.config == hub.read_spec(encoder)
    assert model.config.head == MEAN
    ids = torch.tensor([[3, 4, 5, 6, 7, 98], [8, 9, 98, 0, 0, 0]])
    mask = ids.ne(0)
    with torch.no_grad():
        states = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        found = model(ids, mask).logits

    def pooled(seen: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize((states * seen[..., None]).sum(1) / seen.sum(1, keepdim=True), dim=-1)

    torch.testing.assert_close(found, pooled(mask), atol=1e-5, rtol=0)
    assert float((found - pooled(torch.ones_like(mask))).abs().max()) > 1e-2  # a mean over the padding too is another
