"""Both sides of a comparison, called alike."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from parity.cases import CASES, inputs, pixels, reference, saved
from safetensors.torch import load_file
from torch import Tensor

from triform import hub, nn
from triform.hub.fields import read_json

# Largest difference allowed, relative to the largest value compared (fp32 carries 6e-8; sums of some tens of terms follow).
TOLERANCE = 1e-5


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference relative to the largest of theirs."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _answers(out: Any) -> dict[str, Tensor]:
    """What a reference's output judges, under our names."""
    if "start_logits" in out:
        return {"logits": torch.stack((out.start_logits, out.end_logits), dim=-1)}
    if "prediction_logits" in out:
        return {"logits": out.prediction_logits, "sentence_logits": out.seq_relationship_logits}
    if "logits_per_image" in out:
        return {"logits": out.logits_per_text}
    for name in ("logits", "text_embeds", "image_embeds"):
        if name in out:
            return {"logits": out[name]}
    return {"logits": out.pooler_output} if "pooler_output" in out else {"hidden": out.last_hidden_state}


def call_theirs(model: Any, form: str, ids: Tensor, target: Tensor | None = None) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What the reference answers, and its hidden states: what enters each layer, the encoder's first."""
    if form == "image":
        out = model(pixel_values=pixels(), output_hidden_states=True)
    elif form == "pair":
        out = model(input_ids=ids, pixel_values=pixels(), output_hidden_states=True)
        return _answers(out), []
    elif form == "both":
        out = model(input_ids=ids, decoder_input_ids=target, output_hidden_states=True)
        return _answers(out), [*out.encoder_hidden_states, *out.decoder_hidden_states]
    else:
        out = model(input_ids=ids, output_hidden_states=True)
    return _answers(out), list(out.hidden_states)


def call_ours(model: Any, form: str, ids: Tensor, target: Tensor | None = None, **more: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same of our model; `more` goes to it."""
    trace = nn.Trace()
    if form == "image":
        out = model(pixels(), trace=trace)
    elif form == "pair":
        out = model(ids, target=pixels())
    else:
        out = model(ids, target=target, trace=trace, **more)
    answers = {"logits": out.logits} if out.logits is not None else {"hidden": out.hidden}
    if out.sentence_logits is not None:
        answers["sentence_logits"] = out.sentence_logits
    return answers, trace.hidden


def answers_differ(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference of any answer."""
    assert ours.keys() == theirs.keys()
    return max(difference(ours[name], theirs[name]) for name in theirs)


def compare(model: Any, theirs: Any, name: str) -> float:
    """How far apart the answers of our model and of a case's reference are, on the same input."""
    form = CASES[name].form
    ids, target = inputs(), inputs(10, seed=9) if form == "both" else None
    with torch.no_grad():
        return answers_differ(call_ours(model, form, ids, target)[0], call_theirs(theirs, form, ids, target)[0])


def _gradients_as_weights(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def _gradients_in_a_file(model: Any) -> dict[str, Tensor]:
    """The gradients of a reference under the names of its files: saved in the place of its weights, which are then put back."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    _gradients_as_weights(model)
    found = load_file(saved(model) / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(kept[name])
    return found


def gradients_differ(model: Any, name: str) -> float:
    """How far apart the gradients of a random weighting of the answers are: the largest over all weights, in the 2-norm.

    Relative to the gradient of that weight, or to a hundredth of all where it is less than
    that (a key's bias has a gradient of zero, give or take rounding). Our model's weights
    are overwritten.
    """
    theirs, folder = reference(name)
    form, ids = CASES[name].form, inputs()
    target = inputs(10, seed=9) if form == "both" else None
    draw = torch.Generator().manual_seed(1)
    theirs.zero_grad()
    for answers in (call_theirs(theirs, form, ids, target)[0], call_ours(model, form, ids, target)[0]):
        draw.manual_seed(1)
        torch.stack([(a * torch.randn(a.shape, generator=draw)).sum() for _, a in sorted(answers.items())]).sum().backward()
    expected = _gradients_in_a_file(theirs)
    _gradients_as_weights(model)
    family = hub.read_config(read_json(folder / "config.json"))[1]
    found = hub.export_weights(model, replace(family, computed=()))
    found.pop("final_logits_bias", None)  # a buffer
    least = 1e-2 * float(torch.stack([g.norm() for g in expected.values()]).norm())
    return max(float((g - expected[key]).norm()) / max(float(expected[key].norm()), least) for key, g in found.items())
