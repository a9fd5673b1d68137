"""Reading public configurations: older spellings mean what newer ones say, and what is not supported is refused."""

from typing import Any

import pytest

from triform import config, hub

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6,
    "num_attention_heads": 4, "vocab_size": 99, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
}  # fmt: skip
GEMMA = LLAMA | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16, "num_key_value_heads": 1}
GEMMA = {k: v for k, v in GEMMA.items() if k != "hidden_act"} | {"hidden_activation": "gelu_pytorch_tanh"}
QWEN2 = LLAMA | {"model_type": "qwen2"}
T5: dict[str, Any] = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99,
    "max_position_embeddings": 64, "type_vocab_size": 2,
}  # fmt: skip
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
THREE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}


def read(data: dict[str, Any]) -> Any:
    return hub.read_config(data)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (LLAMA, LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
        (LLAMA | {"rope_theta": 5e5}, LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        ),
        (
            LLAMA | {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **THREE}},
            LLAMA | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **THREE}},
        ),
        (
            LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            LLAMA | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}},
        ),
        (LLAMA | {"rope_scaling": None}, LLAMA),
        (LLAMA, LLAMA | {"tie_word_embeddings": False, "head_dim": 8, "num_key_value_heads": 4, "attention_bias": False}),
        (LLAMA | {"head_dim": None, "num_key_value_heads": None}, LLAMA),
        (QWEN2, QWEN2 | {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 2}),
        (
            QWEN2 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4},
            QWEN2 | {"sliding_window": 4, "layer_types": ["full_attention"] * 4 + ["sliding_attention"] * 2},
        ),
        (GEMMA, GEMMA | {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "tie_word_embeddings": True}),
        (
            GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            GEMMA | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                         "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
        ),
        (T5, T5 | {"tie_word_embeddings": True, "scale_decoder_outputs": True, "num_decoder_layers": 2, "feed_forward_proj": "relu"}),
        (T5 | {"tie_word_embeddings": False}, T5 | {"tie_word_embeddings": False, "scale_decoder_outputs": False}),
        (BERT, BERT | {"architectures": ["BertForMaskedLM"], "layer_norm_eps": 1e-12, "hidden_act": "gelu", "tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_old_and_new_spellings_read_alike(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert read(old) == read(new)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LLAMA, LLAMA | {"rope_theta": 5e5}),
        (LLAMA, LLAMA | {"tie_word_embeddings": True}),
        (LLAMA, LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (GEMMA, GEMMA | {"rope_local_base_freq": 2e4}),
        (GEMMA, GEMMA | {"sliding_window_pattern": 3}),
        (QWEN2, QWEN2 | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 4}),
        (T5, T5 | {"tie_word_embeddings": False}),
        (T5, T5 | {"feed_forward_proj": "gated-gelu"}),
    ],
)
def test_other_values_read_otherwise(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert read(one) != read(other)


def test_gemma_s_window_stands_on_five_layers_of_six() -> None:
    pattern = read(GEMMA | {"num_hidden_layers": 12}).decoder.pattern
    assert [block.attention.window for block in pattern] == [4, 4, 4, 4, 4, None]
    assert [block.attention.position.theta for block in pattern] == [1e4] * 5 + [1e6]


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("BertModel", config.Embed(pool="first", transform="tanh")),
        ("BertForSequenceClassification", config.Classify(labels=3, transform="tanh", dropout=0.1)),
        ("BertForTokenClassification", config.ClassifyTokens(labels=3, dropout=0.1)),
        ("BertForQuestionAnswering", config.AnswerSpan()),
    ],
)
def test_the_head_follows_the_architecture(architecture: str, head: config.Head) -> None:
    assert read(BERT | {"architectures": [architecture], "id2label": {"0": "a", "1": "b", "2": "c"}}).head == head


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"model_type: expected text, got nothing$"),
        ({"model_type": "rwkv"}, r"model_type: expected one of bart, bert, .*, vit, got 'rwkv'$"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, r"hidden_size: expected a whole number, got nothing$"),
        (LLAMA | {"hidden_size": "32"}, r"hidden_size: expected a whole number, got '32'$"),
        (LLAMA | {"hidden_size": True}, r"hidden_size: expected a whole number, got True$"),
        (LLAMA | {"hidden_act": "relu6"}, r"hidden_act: expected one of gelu, .* got 'relu6'$"),
        (LLAMA | {"num_attention_heads": 5}, r"pattern\[0\].attention.heads: expected a divisor of the width 32"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_scaling.type: expected one of default, .*'dynamic'$"),
        (LLAMA | {"rope_scaling": {"type": "longrope", "factor": 2.0}}, r"rope_scaling.type: expected one of default, .*'longrope'$"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", **YARN, "truncate": False}}, r"rope_scaling.truncate: expected True, as"),
        (LLAMA | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, r"rope_parameters.partial_rotary_factor"),
        (LLAMA | {"architectures": ["LlamaForMultipleChoice"]}, r"architectures: expected a class that ends in ForCausalLM"),
        (GEMMA | {"architectures": ["Gemma3ForTokenClassification"]}, r"architectures: expected a class that ends in ForCausalLM"),
        (T5 | {"architectures": ["T5ForMultipleChoice"]}, r"architectures: expected a class that ends in ForConditionalGeneration"),
        (LLAMA | {"num_hidden_layers": 10**9}, r"num_hidden_layers: expected a whole number from 1 to 10000, got 1000000000$"),
        (GEMMA | {"sliding_window_pattern": 0}, r"sliding_window_pattern: expected a whole number from 1 to 10000, got 0$"),
        (GEMMA | {"final_logit_softcapping": 30.0}, r"final_logit_softcapping: expected None, as nothing else is supported, got 30"),
        (GEMMA | {"layer_types": ["sliding_attention"]}, r"layer_types: expected .* for each of the 6 layers"),
        (BERT | {"position_embedding_type": "relative_key"}, r"position_embedding_type: expected 'absolute'"),
        (BERT | {"is_decoder": True}, r"is_decoder: expected False"),
        (BERT | {"architectures": ["BertForMultipleChoice"]}, r"architectures: expected a class that ends in ForMaskedLM, "),
        (BERT | {"architectures": "BertModel"}, r"architectures: expected a list of texts, got 'BertModel'$"),
    ],
)
def test_what_is_not_supported_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^config.json: {message}"):
        hub.read_config(data)
