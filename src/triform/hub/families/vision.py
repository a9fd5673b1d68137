"""ViT, CLIP and CLIP's towers alone."""

from __future__ import annotations

import re
from typing import Any, Literal

from triform import config

from ..family import Family
from ..fields import Fields, activation_name
from ..rules import Row, leading, pairs, rules
from .shared import class_of, dense, ending, head_fields, learned

_VIT_LAYER = {
    "attention.norm": "layernorm_before",
    "attention.body.query": "attention.attention.query",
    "attention.body.key": "attention.attention.key",
    "attention.body.value": "attention.attention.value",
    "attention.body.out": "attention.output.dense",
    "feed_forward.norm": "layernorm_after",
    "feed_forward.body.up": "intermediate.dense",
    "feed_forward.body.down": "output.dense",
}
_VIT = (
    ("encoder.input.first", "vit.embeddings.cls_token", leading(2)),
    ("encoder.input.position", "vit.embeddings.position_embeddings", leading(1)),
    *pairs("encoder.input", "vit.embeddings", {"patch": "patch_embeddings.projection"}),
    *pairs("encoder.layers.{i}", "vit.encoder.layer.{i}", _VIT_LAYER),
    *pairs("encoder", "vit", {"norm": "layernorm"}),
)
_VIT_IN_MEMORY = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}  # of transformers 5, in this order
_CLIP_LAYER = {
    "attention.norm": "layer_norm1",
    "attention.body.query": "self_attn.q_proj",
    "attention.body.key": "self_attn.k_proj",
    "attention.body.value": "self_attn.v_proj",
    "attention.body.out": "self_attn.out_proj",
    "feed_forward.norm": "layer_norm2",
    "feed_forward.body.up": "mlp.fc1",
    "feed_forward.body.down": "mlp.fc2",
}


def _clip_rows(text: str, image: str) -> tuple[Row, ...]:
    """The rows of both towers, whose weights start with these names on our side."""
    return (
        (f"{text}.input.token.weight", "text_model.embeddings.token_embedding.weight"),
        (f"{text}.input.position.weight", "text_model.embeddings.position_embedding.weight"),
        (f"{image}.input.first", "vision_model.embeddings.class_embedding"),
        (f"{image}.input.patch.weight", "vision_model.embeddings.patch_embedding.weight"),
        (f"{image}.input.position", "vision_model.embeddings.position_embedding.weight"),
        *pairs(f"{image}.input", "vision_model", {"norm": "pre_layrnorm"}),
        *pairs(image, "vision_model", {"norm": "post_layernorm"}),
        *pairs(text, "text_model", {"norm": "final_layer_norm"}),
        *pairs(f"{text}.layers.{{i}}", "text_model.encoder.layers.{i}", _CLIP_LAYER),
        *pairs(f"{image}.layers.{{i}}", "vision_model.encoder.layers.{i}", _CLIP_LAYER),
    )


_CLIP = rules(
    ("temperature", "logit_scale"),
    ("text_out.weight", "text_projection.weight"),
    ("image_out.weight", "visual_projection.weight"),
    *_clip_rows("text", "image"),
)


def _tower(
    hf: Fields,
    tokens: config.Tokens | config.Patches,
    norm: config.LayerNorm,
    dropout: tuple[float, float],
    bias: Literal["all", "out"] = "all",
) -> config.Stack:
    """`dropout`: of the attention's weights, and of each sublayer."""
    block = config.Block(
        attention=config.Attention(
            heads=hf.whole("num_attention_heads", 12),
            mask="causal" if isinstance(tokens, config.Tokens) else "bidirectional",
            bias=bias,
            dropout=dropout[0],
        ),
        feed_forward=config.FeedForward(hidden=hf.whole("intermediate_size", 3072), activation=hf.activation("hidden_act", "gelu")),
        norm=norm,
        dropout=dropout[1],
    )
    width, depth = hf.whole("hidden_size", 768), hf.count("num_hidden_layers", 12)
    return config.Stack(width=width, depth=depth, input=tokens, pattern=(block,), norm=norm)


def read_vit(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of a ViT configuration, as a classifier or bare with its pooler."""
    hf.refuse(pooler_output_size=hf.whole("hidden_size", 768))
    norm, dropout = config.LayerNorm(eps=hf.number("layer_norm_eps", 1e-12)), hf.number("hidden_dropout_prob", 0.0)
    patches = config.Patches(
        image=hf.whole("image_size", 224), patch=hf.whole("patch_size", 16), channels=hf.whole("num_channels", 3), dropout=dropout
    )
    bare = ending(hf, ("ForImageClassification", "Model")) == "Model"
    head: config.Head = config.Classify(labels=hf.labels())
    if bare:
        head = config.Embed(pool="first", transform=hf.activation("pooler_act", "tanh"))
    tail = pairs("head", "", {"dense": "vit.pooler.dense"} if bare else {"out": "classifier"})
    model = config.Transformer(
        encoder=_tower(
            hf, patches, norm, (hf.number("attention_probs_dropout_prob", 0.0), dropout),
            "all" if hf.flag("qkv_bias", True) else "out",
        ),
        head=head,
        init=config.Init(std=hf.number("initializer_range", 0.02)),
    )
    ignore = () if bare else (r"vit\.pooler\..*",)
    layer, names = r"((?:vit\.)?)layers\.(\d+)\.", _VIT_IN_MEMORY.items()
    family = Family(
        name="vit", table=rules(*_VIT, *tail), prefix="vit.", bare=bare, ignore=ignore,
        renames=tuple((layer + re.escape(new) + r"\.(.*)", rf"\1encoder.layer.\2.{old}.\3") for old, new in names),
        modules=((r"encoder\.layer\.", "layers."), *((rf"\.{re.escape(old)}$", f".{new}") for old, new in names)),
    )  # fmt: skip
    return model, family


def write_vit(model: config.Model) -> dict[str, Any] | None:
    """The nearest ViT configuration of an encoder that reads images; None for other forms."""
    if not isinstance(model, config.Transformer) or model.encoder is None or model.decoder is not None:
        return None
    stack, block = model.encoder, model.encoder.pattern[0]
    if not isinstance(stack.input, config.Patches):
        return None
    activation = model.head.transform if isinstance(model.head, config.Embed) else None
    return {
        "model_type": "vit",
        "architectures": ["ViT" + class_of(model.head).replace("Sequence", "Image")],
        **_tower_fields(stack),
        "layer_norm_eps": block.norm.eps,
        "qkv_bias": block.attention.bias in ("all", "qkv"),
        "hidden_dropout_prob": block.dropout,
        "attention_probs_dropout_prob": block.attention.dropout,
        "pooler_act": activation_name(activation or "tanh"),
        "initializer_range": model.init.std,
        **head_fields(model.head),
    }


# Nested configurations leave out what their class has as default
_TEXT: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "hidden_act": "quick_gelu"}
_IMAGE: dict[str, Any] = {"hidden_act": "quick_gelu"}


def _clip_text(hf: Fields) -> config.Stack:
    hf = hf.over(**_TEXT)
    tokens = config.Tokens(
        vocab_size=hf.whole("vocab_size", 49408), position=config.Learned(length=hf.whole("max_position_embeddings", 77))
    )
    norm = config.LayerNorm(eps=hf.number("layer_norm_eps", 1e-5))
    return _tower(hf, tokens, norm, (hf.number("attention_dropout", 0.0), 0.0))


def _clip_image(hf: Fields) -> config.Stack:
    hf = hf.over(**_IMAGE)
    norm = config.LayerNorm(eps=hf.number("layer_norm_eps", 1e-5))
    patches = config.Patches(
        image=hf.whole("image_size", 224),
        patch=hf.whole("patch_size", 32),
        channels=hf.whole("num_channels", 3),
        bias=False,
        norm=norm,
    )
    return _tower(hf, patches, norm, (hf.number("attention_dropout", 0.0), 0.0))


def _end(text: Fields) -> int | None:
    end = text.whole("eos_token_id", 49407)
    return None if end == 2 else end  # 2 stands in early files for the highest id


def read_clip(hf: Fields) -> tuple[config.DualEncoder, Family]:
    """The model and the names of a CLIP configuration."""
    text = hf.part("text_config")
    model = config.DualEncoder(
        text=_clip_text(text),
        image=_clip_image(hf.part("vision_config")),
        width=hf.whole("projection_dim", 512),
        end_token=_end(text),
        init=config.Init(scale_residuals=True),
    )
    return model, Family(name="clip", table=_CLIP, ignore=(r".*\.position_ids",))


def read_clip_tower(hf: Fields) -> tuple[config.Transformer, Family]:
    """The model and the names of one tower of CLIP, bare or with its projection."""
    name = hf.text("model_type")
    projected = ending(hf, ("ModelWithProjection", "Model")) == "ModelWithProjection"
    width = hf.whole("projection_dim", 512) if projected else None
    if name == "clip_text_model":
        stack = _clip_text(hf)
        # in early files 2 stands for the highest id, which CLIP's end token has
        end = _end(hf)
        head = config.Embed(pool="end", end_token=_vocabulary(stack) - 1 if end is None else end, width=width)
    else:
        stack, head = _clip_image(hf), config.Embed(pool="first", width=width)
    out = "text_projection.weight" if name == "clip_text_model" else "visual_projection.weight"
    model = config.Transformer(encoder=stack, head=head, init=config.Init(scale_residuals=True))
    table = rules(("head.out.weight", out), *_clip_rows("encoder", "encoder"))
    prefix = "text_model." if name == "clip_text_model" else "vision_model."
    table = tuple(rule for rule in table if rule.theirs.startswith((prefix, out)))
    return model, Family(name=name, table=table, prefix=prefix, bare=not projected, ignore=(r"(.*\.)?embeddings\.position_ids",))


def _vocabulary(stack: config.Stack) -> int:
    assert isinstance(stack.input, config.Tokens)
    return stack.input.vocab_size


def _tower_fields(stack: config.Stack) -> dict[str, Any]:
    block, forward = stack.pattern[0], dense(stack.pattern[0].feed_forward)
    data = {
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": block.attention.heads,
        "intermediate_size": forward.hidden,
        "hidden_act": activation_name(forward.activation),
    }
    if isinstance(stack.input, config.Patches):
        return data | {"image_size": stack.input.image, "patch_size": stack.input.patch, "num_channels": stack.input.channels}
    return data | {"vocab_size": stack.input.vocab_size, "max_position_embeddings": learned(stack.input, 77).length}


def _clip_fields(stack: config.Stack, end_token: int | None = None) -> dict[str, Any]:
    block = stack.pattern[0]
    data = _tower_fields(stack) | {"layer_norm_eps": block.norm.eps, "attention_dropout": block.attention.dropout}
    if isinstance(stack.input, config.Patches):
        return data | {"model_type": "clip_vision_model"}
    ids = {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": 2 if end_token is None else end_token}
    return data | {"model_type": "clip_text_model"} | ids


def write_clip(model: config.Model) -> dict[str, Any] | None:
    """The nearest CLIP configuration of two towers; None for other forms."""
    if not isinstance(model, config.DualEncoder):
        return None
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": model.width,
        "text_config": _clip_fields(model.text, model.end_token),
        "vision_config": _clip_fields(model.image),
    }


def write_clip_tower(model: config.Model) -> dict[str, Any] | None:
    """The nearest configuration of one tower of CLIP for an encoder that embeds; None for others."""
    if not isinstance(model, config.Transformer) or model.encoder is None or model.decoder is not None:
        return None
    if not isinstance(model.head, config.Embed):
        return None
    end = "ModelWithProjection" if model.head.width else "Model"
    tower = "Text" if isinstance(model.encoder.input, config.Tokens) else "Vision"
    data = {"architectures": [f"CLIP{tower}{end}"], **_clip_fields(model.encoder, model.head.end_token)}
    return data | ({"projection_dim": model.head.width} if model.head.width else {})
