"""Encoder-decoders that judge (BART, T5, mT5): the decoder reads the input again, one place to the right.

The tolerance is that of the other comparisons, 1e-5 of the largest value; exports are bit-exact.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity.cases import BART, T5, perturb, saved
from parity.compare import TOLERANCE, difference
from safetensors.torch import load_file
from torch import Tensor

from triform import config, hub
from triform.hub.files import read_json

END, START = 98, 0
MARKS = {"eos_token_id": END, "pad_token_id": START, "decoder_start_token_id": START}
CASES = {
    "bart-classes": ("BartForSequenceClassification", "BartConfig", BART),
    "bart-answers": ("BartForQuestionAnswering", "BartConfig", BART),
    "t5-classes": ("T5ForSequenceClassification", "T5Config", T5),
    "t5-answers": ("T5ForQuestionAnswering", "T5Config", T5),
    "mt5-classes": ("MT5ForSequenceClassification", "MT5Config", T5),
}
pytestmark = pytest.mark.filterwarnings("ignore")


@lru_cache(maxsize=None)
def pair(name: str) -> tuple[Any, Any, Path]:
    """Our model, the perturbed reference, and its folder."""
    kind, settings, arguments = CASES[name]
    transformers.logging.set_verbosity_error()
    torch.manual_seed(sum(map(ord, name)))
    labels = {"num_labels": 5} if name.endswith("classes") else {}
    theirs = getattr(transformers, kind)(getattr(transformers, settings)(**arguments | MARKS | labels)).eval()
    with torch.no_grad():
        perturb(dict(theirs.named_parameters()), arguments)
    folder = saved(theirs)
    return hub.load_public(folder), theirs, folder


def rows() -> tuple[Tensor, Tensor]:
    """Two rows that end with the end token, the second padded on the right, and their mask."""
    ids = torch.randint(3, END, (2, 12), generator=torch.Generator().manual_seed(4))
    ids[0, -1] = ids[1, 8] = END
    ids[1, 9:] = START
    return ids, torch.arange(12) < torch.tensor([[12], [9]])


def ours_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    target = torch.cat((torch.full((len(ids), 1), START), ids[:, :-1]), dim=1)
    seen = mask if isinstance(model.config.head, config.Classify) else None  # which token is the last; causal masks hide the rest
    return model(ids, mask, target, seen).logits


def theirs_of(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    target = torch.cat((torch.full((len(ids), 1), START), ids[:, :-1]), dim=1)
    out = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=target)
    return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), dim=-1)


@pytest.mark.parametrize("name", CASES)
def test_answers(name: str) -> None:
    ours, theirs, _ = pair(name)
    ids, mask = rows()
    with torch.no_grad():
        got, wanted = ours_of(ours, ids, mask), theirs_of(theirs, ids, mask)
        other = ours_of(ours, ids.flip(1), mask)
    assert difference(got, wanted) < TOLERANCE
    assert difference(other, wanted) > 100 * TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    _, theirs, folder = pair(name)
    ours, (ids, mask) = hub.load_public(folder), rows()
    theirs.zero_grad()
    for logits in (ours_of(ours, ids, mask), theirs_of(theirs, ids, mask)):
        logits.square().sum().backward()
    last = next(p for n, p in theirs.named_parameters() if n.endswith(("out_proj.weight", "qa_outputs.weight")) and "attn" not in n)
    assert difference(ours.head.out.weight.grad, last.grad) < TOLERANCE
    table = theirs.get_input_embeddings().weight.grad
    kept = torch.arange(len(table)) != START  # the library gives the padding's row no gradient in BART
    assert difference(ours.encoder.input.token.weight.grad[kept], table[kept]) < 10 * TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_opens_with_the_same_answers(name: str, tmp_path: Path) -> None:
    ours, theirs, folder = pair(name)
    _, family = hub.read_config(read_json(folder / "config.json"))
    original = load_file(folder / "model.safetensors")
    exported = hub.export_weights(ours, family)
    assert all(torch.equal(tensor, original[key]) for key, tensor in exported.items())
    hub.save(ours, None, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert data["architectures"] == [CASES[name][0].removeprefix("M")]  # a judging mT5 is a T5
    (tmp_path / "config.json").write_text(json.dumps(data | MARKS), encoding="utf-8")
    again = getattr(transformers, data["architectures"][0]).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert difference(theirs_of(again, *rows()), theirs_of(theirs, *rows())) < TOLERANCE
