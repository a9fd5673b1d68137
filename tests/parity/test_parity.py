"""Each family's small model against Hugging Face's, from files that the reference wrote.

Stated in `compare.TOLERANCE`: 1e-5 of the largest value, for answers, hidden states and gradients; exports are bit-exact.
"""

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from parity.cases import CASES, inputs, reference
from parity.compare import TOLERANCE, answers_differ, call_ours, call_theirs, compare, difference, gradients_differ
from safetensors.torch import load_file
from torch import Tensor

from triform import hub, nn
from triform.hub.fields import read_json

pytestmark = pytest.mark.filterwarnings("ignore")
CACHED = [name for name, case in CASES.items() if case.form in ("decoder", "both") and "ForSequence" not in case.model]
READING = [name for name, case in CASES.items() if case.form not in ("image", "pair")]


@lru_cache(maxsize=None)
def pair(name: str) -> tuple[Any, Any]:
    """Our model and the reference."""
    theirs, folder = reference(name)
    return hub.load_public(folder), theirs


@pytest.mark.parametrize("name", CASES)
def test_answers(name: str) -> None:
    assert compare(*pair(name), name) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_parameters_are_as_many(name: str) -> None:
    ours, theirs = pair(name)
    expected = theirs.num_parameters(only_trainable=True)
    assert sum(p.numel() for p in ours.parameters()) == expected


@pytest.mark.parametrize("name", [n for n in CASES if n != "clip"])
def test_hidden_states(name: str) -> None:
    ours, theirs = pair(name)
    form, ids = CASES[name].form, inputs()
    target = inputs(10, seed=9) if form == "both" else None
    with torch.no_grad():
        mine, others = call_ours(ours, form, ids, target)[1], call_theirs(theirs, form, ids, target)[1]
    assert len(mine) == len(others)
    if form == "image" or name.startswith("clip"):
        mine, others = mine[:-1], others[:-1]  # theirs is taken before the last norm
    assert max(difference(a, b) for a, b in zip(mine, others, strict=True)) < TOLERANCE


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Rows (1, T) in one batch, and its mask; padding is a token that means something, so that it must be masked."""
    longest = max(row.shape[1] for row in rows)
    batch, mask = torch.full((len(rows), longest), 7), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, row.shape[1]) if side == "right" else slice(longest - row.shape[1], None)
        batch[i, place], mask[i, place] = row[0], True
    return batch, mask


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", READING)
def test_padding_changes_nothing(name: str, side: str) -> None:
    """Rows of a padded batch answer as the reference does to each row alone."""
    ours, theirs = pair(name)
    form, rows = CASES[name].form, [inputs(12), inputs(9, seed=3)]
    targets = [inputs(10, seed=9), inputs(7, seed=11)] if form == "both" else None
    batch, mask = padded(rows, side)
    more: dict[str, Any] = {"mask": mask}
    seen, target = mask, None
    if targets is not None:
        target, seen = padded(targets, side)
        more["target_mask"] = seen
    with torch.no_grad():
        mine = call_ours(ours, form, batch, target, **more)[0]
        for i, row in enumerate(rows):
            others = call_theirs(theirs, form, row, targets[i] if targets else None)[0]
            kept = {n: (a[i, seen[i]] if a.shape[:2] == seen.shape else a[i])[None] for n, a in mine.items()}
            assert answers_differ(kept, others) < TOLERANCE


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "switch"])
def test_padding_that_is_seen_would_be_noticed(name: str) -> None:
    """The control of the test above."""
    ours, form = pair(name)[0], CASES[name].form
    batch, mask = padded([inputs(12), inputs(9, seed=3)], "left")
    target = inputs(10, seed=9).expand(2, -1) if form == "both" else None
    with torch.no_grad():
        masked, unmasked = (call_ours(ours, form, batch, target, mask=m)[0]["logits"][1, -1] for m in (mask, None))
    assert difference(masked, unmasked) > 10 * TOLERANCE


@pytest.mark.parametrize("make", [nn.Cache.growing, lambda model: nn.Cache.preallocated(model, 16)], ids=["growing", "preallocated"])
@pytest.mark.parametrize("name", CACHED)
def test_cached_steps_answer_as_the_reference_s_full_pass(name: str, make: Any) -> None:
    ours, theirs = pair(name)
    form, ids = CASES[name].form, inputs()
    target = inputs(10, seed=9)
    tokens = ids if form == "decoder" else target
    cache, steps = make(ours.config), []
    cuts = [0, 5, *range(6, tokens.shape[1] + 1)]
    with torch.no_grad():
        for start, end in pairwise(cuts):
            part = tokens[:, start:end]
            out = ours(part, cache=cache) if form == "decoder" else ours(ids, target=part, cache=cache)
            steps.append(out.hidden if out.logits is None else out.logits)
        full = call_theirs(theirs, form, ids, target if form == "both" else None)[0]
    assert difference(torch.cat(steps, dim=1), *full.values()) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_export_is_bit_exact(name: str) -> None:
    folder = reference(name)[1]
    original = load_file(folder / "model.safetensors")
    _, family = hub.read_config(read_json(folder / "config.json"))
    mine = hub.export_weights(pair(name)[0], family)
    assert all(torch.equal(tensor, original[key]) for key, tensor in mine.items())
    left = original.keys() - mine.keys()
    assert all(any(re.fullmatch(p, key) for p in (*family.ignore, *(r[0] for r in family.repeats))) for key in left)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    assert gradients_differ(hub.load_public(reference(name)[1]), name) < TOLERANCE
