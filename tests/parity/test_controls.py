"""Comparisons must fail where something is wrong: each mistake here is one that `test_parity` has to notice."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from parity.cases import reference
from parity.compare import TOLERANCE, compare, gradients_differ

from triform import config, hub, nn
from triform.hub.fields import read_json
from triform.hub.files import WeightFiles

pytestmark = pytest.mark.filterwarnings("ignore")
Made = tuple[config.Model, hub.Family]


def setting(**fields: Any) -> Callable[[Made], Made]:
    """Another value for fields of the configuration, by path with `__` for a dot."""

    def change(made: Made) -> Made:
        paths = {path.replace("__", "."): value for path, value in fields.items()}
        return config.with_overrides(config.Model, made[0], {re.sub(r"\.(\d+)\.", r"[\1].", p): v for p, v in paths.items()}), made[1]

    return change


def swapping(one: str, other: str) -> Callable[[Made], Made]:
    """Two rows of the table that name each other's weights."""

    def change(made: Made) -> Made:
        names = {one: other, other: one}
        table = tuple(r._replace(ours=tuple(names.get(n, n) for n in r.ours)) for r in made[1].table)
        assert table != made[1].table
        return made[0], replace(made[1], table=table)

    return change


def sharing_output(made: Made) -> Made:
    """The output matrix left unread, and the token table in its place."""
    return setting(head__tied=True)(made)[0], replace(made[1], repeats=(), ignore=(r"lm_head\.weight",))


DECODER, ENCODER = "decoder.layers.{i}.", "encoder.layers.{i}."
MISTAKES: dict[str, tuple[str, Callable[[Made], Made]]] = {
    "norms swapped": ("llama", swapping(DECODER + "attention.norm.weight", DECODER + "feed_forward.norm.weight")),
    "norm biases swapped": ("gpt2", swapping(DECODER + "attention.norm.bias", DECODER + "feed_forward.norm.bias")),
    "query and value biases swapped": ("bert", swapping(ENCODER + "attention.body.query.bias", ENCODER + "attention.body.value.bias")),
    "gate and up swapped": ("llama", swapping(DECODER + "feed_forward.body.gate.weight", DECODER + "feed_forward.body.up.weight")),
    "query and key norms swapped": (
        "qwen3", swapping(DECODER + "attention.body.query_norm.weight", DECODER + "attention.body.key_norm.weight"),
    ),
    "rope scaling left out": ("llama-3.1", setting(decoder__pattern__0__attention__position__scaling=None)),
    "rope scaling's factor": ("llama-yarn", setting(decoder__pattern__0__attention__position__scaling__factor=3.9)),
    "rope base": ("llama", setting(decoder__pattern__0__attention__position__theta=10_500.0)),
    "window one longer": ("mistral", setting(decoder__pattern__0__attention__window=5)),
    "window left out": ("gemma3", setting(decoder__pattern__0__attention__window=None)),
    "norm without its offset": ("gemma3", setting(decoder__norm__unit_offset=False)),
    "norm's eps": ("gemma3", setting(decoder__pattern__0__norm__eps=1e-3)),
    "score scale": ("gemma3", setting(decoder__pattern__0__attention__scale=0.25)),
    "embedding unscaled": ("gemma3", setting(decoder__input__scale=1.0)),
    "output tied": ("t5-1.1", sharing_output),
    "output scaled": ("t5-1.1", setting(head__scale=32**-0.5)),
    "exact GELU for its tanh form": ("t5-1.1", setting(encoder__pattern__0__feed_forward__activation="gelu")),
    "tanh GELU for the exact": ("bert", setting(encoder__pattern__0__feed_forward__activation="gelu_tanh")),
    "farthest bucket": ("t5", setting(decoder__pattern__0__attention__position__max_distance=16)),
    "experts' weights not renormalised": ("mixtral", setting(decoder__pattern__0__feed_forward__renormalize=False)),
    "one expert for two": ("mixtral", setting(decoder__pattern__0__feed_forward__top_k=1)),
    "norm before instead of after": ("bart", setting(encoder__pattern__0__placement="pre")),
    "norm after instead of before": ("pegasus", setting(decoder__pattern__0__placement="post")),
    "sines and cosines by turns": ("marian", setting(encoder__input__position__interleaved=True)),
    "another embedding scale": ("marian", setting(decoder__input__scale=1.0)),
    "mT5's output scaled": ("mt5", setting(head__scale=32**-0.5)),
    "YaRN's usual magnitude": ("llama-yarn-mscale", setting(decoder__pattern__0__attention__position__scaling__attention_factor=None)),
    "window one shorter": ("qwen3-experts-windows", setting(decoder__pattern__0__attention__window=3)),
    "judged at the first token": ("llama-classes", setting(head__pool="first")),
    "judged at the mean": ("gpt2-classes", setting(head__pool="mean")),
    "pooler without its activation's kind": ("bert-next-sentence", setting(head__transform="relu")),
    "image vector of the mean": ("clip-image", setting(head__pool="mean")),
    "quick GELU for the exact": ("vit-no-bias", setting(encoder__pattern__0__feed_forward__activation="quick_gelu")),
    "bidirectional text": ("clip", setting(text__pattern__0__attention__mask="bidirectional")),
}  # fmt: skip


def built(name: str, change: Callable[[Made], Made]) -> Any:
    """Our model of a case after a change to what was read."""
    folder = reference(name)[1]
    spec, family = hub.read_config(read_json(folder / "config.json"))
    if name in ("t5-1.1", "mt5"):
        spec = config.with_overrides(config.Model, spec, {"head.tied": False})
    spec, family = change((spec, family))
    model = nn.build(spec).eval()
    hub.load_weights(model, folder, family)
    return model


@pytest.mark.parametrize("name", sorted({name for name, _ in MISTAKES.values()}))
def test_without_a_mistake_they_agree(name: str) -> None:
    assert compare(built(name, lambda made: made), reference(name)[0], name) < TOLERANCE


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str) -> None:
    name, change = MISTAKES[mistake]
    assert compare(built(name, change), reference(name)[0], name) > 10 * TOLERANCE


@pytest.mark.parametrize("mistake", ["rope base", "window one longer", "norm's eps", "norm before instead of after"])
def test_a_mistake_is_noticed_in_the_gradients(mistake: str) -> None:
    name, change = MISTAKES[mistake]
    assert gradients_differ(built(name, change), name) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"head.tied": False}, r"^the checkpoint lacks lm_head.weight, which a gpt2 model"),
        ("gpt2", {"decoder.depth": 4}, r"^the checkpoint lacks transformer.h.3.attn.c_attn.bias, .* and 7 more, which"),
        ("gpt2", {"decoder.depth": 2}, r"^the checkpoint also has transformer.h.2.attn.c_attn.bias, .* and 7 more, which"),
        ("gpt2", {"decoder.input.vocab_size": 98}, r"^decoder.input.token.weight should be \(98, 32\), .*wte.weight is \(99, 32\)$"),
        ("qwen2", {"decoder.pattern[0].attention.bias": "none"}, r"^the checkpoint also has model.layers.0.self_attn.k_proj.bias"),
        ("t5-1.1", {"head.tied": True}, r"^lm_head.weight differs from shared.weight, though the configuration makes them one"),
        ("llama", {"decoder.pattern[0].placement": "sandwich"}, r"^no rule for decoder.layers.0.attention.norm_out.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(name, lambda made: (config.with_overrides(config.Model, made[0], changes), made[1]))


def test_a_refused_checkpoint_leaves_the_model_as_it_was() -> None:
    folder = reference("gpt2")[1]
    spec, family = hub.read_config(read_json(folder / "config.json"))
    model = nn.build(spec, seed=0)
    before = {n: p.clone() for n, p in model.named_parameters()}
    stored = dict(WeightFiles(folder))
    del stored["transformer.h.2.mlp.c_fc.weight"]
    with pytest.raises(ValueError, match=r"lacks transformer.h.2.mlp.c_fc.weight"):
        hub.load_weights(model, stored, family)
    assert all((before[n] == p).all() for n, p in model.named_parameters())
