"""ViT and CLIP."""

from __future__ import annotations

from triform import config

from ..family import Family
from ..fields import Fields
from ..rules import leading, pairs, rules

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
_CLIP = rules(
    ("temperature", "logit_scale"),
    ("text_out.weight", "text_projection.weight"),
    ("image_out.weight", "visual_projection.weight"),
    ("text.input.token.weight", "text_model.embeddings.token_embedding.weight"),
    ("text.input.position.weight", "text_model.embeddings.position_embedding.weight"),
    ("image.input.first", "vision_model.embeddings.class_embedding"),
    ("image.input.patch.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("image.input.position", "vision_model.embeddings.position_embedding.weight"),
    *pairs("image.input", "vision_model", {"norm": "pre_layrnorm"}),
    *pairs("image", "vision_model", {"norm": "post_layernorm"}),
    *pairs("text", "text_model", {"norm": "final_layer_norm"}),
    *pairs("text.layers.{i}", "text_model.encoder.layers.{i}", _CLIP_LAYER),
    *pairs("image.layers.{i}", "vision_model.encoder.layers.{i}", _CLIP_LAYER),
)


def _tower(hf: Fields, tokens: config.Tokens | config.Patches, norm: config.LayerNorm, dropout: tuple[float, float]) -> config.Stack:
    """`dropout`: of the attention's weights, and of each sublayer."""
    block = config.Block(
        attention=config.Attention(
            heads=hf.whole("num_attention_heads", 12),
            mask="causal" if isinstance(tokens, config.Tokens) else "bidirectional",
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
    hf.refuse(qkv_bias=True, pooler_output_size=hf.whole("hidden_size", 768))
    norm, dropout = config.LayerNorm(eps=hf.number("layer_norm_eps", 1e-12)), hf.number("hidden_dropout_prob", 0.0)
    patches = config.Patches(
        image=hf.whole("image_size", 224), patch=hf.whole("patch_size", 16), channels=hf.whole("num_channels", 3), dropout=dropout
    )
    architecture = hf.architecture or "ForImageClassification"
    if not architecture.endswith(("ForImageClassification", "Model")):
        raise hf.fail("architectures", "a class that ends in ForImageClassification or Model")
    bare = architecture.endswith("Model")
    head: config.Head = config.Classify(labels=hf.labels())
    if bare:
        head = config.Embed(pool="first", transform=hf.activation("pooler_act", "tanh"))
    tail = pairs("head", "", {"dense": "vit.pooler.dense"} if bare else {"out": "classifier"})
    model = config.Transformer(
        encoder=_tower(hf, patches, norm, (hf.number("attention_probs_dropout_prob", 0.0), dropout)),
        head=head,
        init=config.Init(std=hf.number("initializer_range", 0.02)),
    )
    ignore = () if bare else (r"vit\.pooler\..*",)
    return model, Family(name="vit", table=rules(*_VIT, *tail), prefix="vit.", bare=bare, ignore=ignore)


def read_clip(hf: Fields) -> tuple[config.DualEncoder, Family]:
    """The model and the names of a CLIP configuration."""
    # nested configurations leave out what their class has as default
    text = hf.part("text_config").over(hidden_size=512, intermediate_size=2048, num_attention_heads=8, hidden_act="quick_gelu")
    image = hf.part("vision_config").over(hidden_act="quick_gelu")
    text_norm, image_norm = (config.LayerNorm(eps=part.number("layer_norm_eps", 1e-5)) for part in (text, image))
    tokens = config.Tokens(
        vocab_size=text.whole("vocab_size", 49408), position=config.Learned(length=text.whole("max_position_embeddings", 77))
    )
    patches = config.Patches(
        image=image.whole("image_size", 224),
        patch=image.whole("patch_size", 32),
        channels=image.whole("num_channels", 3),
        bias=False,
        norm=image_norm,
    )
    end = text.whole("eos_token_id", 49407)
    model = config.DualEncoder(
        text=_tower(text, tokens, text_norm, (text.number("attention_dropout", 0.0), 0.0)),
        image=_tower(image, patches, image_norm, (image.number("attention_dropout", 0.0), 0.0)),
        width=hf.whole("projection_dim", 512),
        end_token=None if end == 2 else end,  # 2 stands in early files for the highest id
        init=config.Init(scale_residuals=True),
    )
    return model, Family(name="clip", table=_CLIP, ignore=(r".*\.position_ids",))
