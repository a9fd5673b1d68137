"""For tests of GGUF: small models of each architecture, files byte by byte, and llama.cpp in a process of its own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from triform import config, nn

WIDTH, VOCAB, DEPTH = 64, 96, 3
_RMS = config.RMSNorm(eps=1e-5)


def _decoder(attention: config.Attention, feed_forward: config.FeedForward | config.Experts, **more: Any) -> config.Transformer:
    norm, placement = more.get("norm", _RMS), more.get("placement", "pre")
    block = config.Block(attention=attention, feed_forward=feed_forward, norm=norm, placement=placement)
    tokens = config.Tokens(vocab_size=VOCAB, position=more.get("position"))
    stack = config.Stack(width=WIDTH, depth=more.get("depth", DEPTH), input=tokens, pattern=(block,), norm=norm)
    return config.Transformer(decoder=stack, head=config.LanguageModel(tied=more.get("tied", False)))


def _attention(**fields: Any) -> config.Attention:
    return config.Attention(**{"heads": 4, "kv_heads": 2, "mask": "causal", "bias": "none", "position": config.Rotary(theta=1e4)} | fields)


def _gated(activation: config.Activation = "silu", bias: bool = False) -> config.FeedForward:
    return config.FeedForward(hidden=96, activation=activation, gated=True, bias=bias)


def _gemma3() -> config.Transformer:
    norm = config.RMSNorm(eps=1e-6, unit_offset=True)
    far = _attention(position=config.Rotary(theta=1e6, scaling=config.Linear(factor=8.0)), qk_norm=norm, head_width=32, scale=32**-0.5)
    near = replace(far, window=4, position=config.Rotary(theta=1e4))
    whole = _decoder(far, _gated("gelu_tanh"), norm=norm, placement="sandwich", tied=True, depth=7)
    block = whole.last.block(0)
    pattern = (*(replace(block, attention=near),) * 5, block)
    pattern = tuple(pattern[i % 6] for i in range(7))
    return replace(whole, decoder=replace(whole.last, pattern=pattern, input=replace(whole.last.input, scale=WIDTH**0.5)))


def _scaled(scaling: config.Linear | config.Llama3 | config.Yarn) -> config.Transformer:
    return _decoder(_attention(position=config.Rotary(theta=1e4, scaling=scaling)), _gated())


_EXPERTS = config.Experts(expert=_gated(), count=4, top_k=2, renormalize=True)
SPECS: dict[str, config.Transformer] = {
    "llama": _decoder(_attention(), _gated()),
    "llama-biases": _decoder(_attention(bias="all"), _gated(bias=True)),
    "llama-tied-wide": _decoder(_attention(head_width=24), _gated(), tied=True),
    "llama3": _scaled(config.Llama3(factor=8.0, low=1.0, high=4.0, original_length=32)),
    "llama-linear": _scaled(config.Linear(factor=4.0)),
    "llama-yarn": _scaled(config.Yarn(factor=4.0, original_length=32)),
    "llama-yarn-stretched": _scaled(config.Yarn(factor=4.0, original_length=32, fast=16.0, attention_factor=1.3)),
    "mixtral": _decoder(_attention(), _EXPERTS),
    "qwen2": _decoder(_attention(bias="qkv"), _gated(), tied=True),
    "qwen3": _decoder(_attention(qk_norm=_RMS, head_width=32), _gated(), tied=True),
    "qwen3moe": _decoder(_attention(qk_norm=_RMS), _EXPERTS),
    "gemma3": _gemma3(),
    "gpt2": _decoder(
        config.Attention(heads=4, mask="causal"), config.FeedForward(hidden=256, activation="gelu_tanh"), norm=config.LayerNorm(),
        position=config.Learned(length=80), tied=True,
    ),
}  # fmt: skip


def build(spec: config.Transformer, seed: int = 0) -> Any:
    """A model whose every weight is disturbed, so that none could be swapped for another unseen."""
    torch.manual_seed(seed)
    model = nn.build(spec)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens that a model finds likeliest, one after the other."""
    found: list[int] = []
    with torch.no_grad():
        while len(found) < count:
            found.append(int(model(torch.tensor([prompt + found])).logits[0, -1].argmax()))
    return found


def text(value: str | bytes) -> bytes:
    """A text as it stands in a file."""
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key and its value, whose type is `kind`."""
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What a file says of one tensor; `shape` as the file has it, the fastest dimension first."""
    return text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


def file(
    pairs: list[bytes], entries: list[bytes], data: bytes = b"", *, counts: tuple[int, int] | None = None, version: int = 3, align: int = 32
) -> bytes:
    """A GGUF file; `counts` of tensors and pairs where it shall lie about them."""
    tensors, metadata = counts or (len(entries), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, metadata) + b"".join(pairs) + b"".join(entries)
    return head + bytes(-len(head) % align) + data


def value(found: bool | int | float | str | list[str]) -> tuple[int, bytes]:
    """The number of a value's type, and the value as it stands in a file."""
    match found:
        case bool():
            return 7, bytes([found])
        case int():
            return 4, struct.pack("<I", found)
        case float():
            return 6, struct.pack("<f", found)
        case str():
            return 8, text(found)
    return 9, struct.pack("<IQ", 8, len(found)) + b"".join(text(item) for item in found)


def llama_file(**changed: Any) -> bytes:
    """A file of a LLaMA of four tokens with what `read_spec` looks at; `changed` metadata, with __ for a dot, None for none."""
    sizes = {"block_count": 1, "context_length": 16, "embedding_length": 4, "attention.head_count": 2}
    said = {"general.architecture": "llama", "llama.attention.layer_norm_rms_epsilon": 1e-5}
    said |= {f"llama.{key}": size for key, size in sizes.items()} | {key.replace("__", "."): value for key, value in changed.items()}
    shapes = {"token_embd.weight": (4, 4), "blk.0.attn_q.weight": (4, 4), "blk.0.ffn_up.weight": (4, 4)}
    entries = [entry(name, shape, 0, 64 * i) for i, (name, shape) in enumerate(shapes.items())]
    return file([pair(key, *value(found)) for key, found in said.items() if found is not None], entries, bytes(64 * len(shapes)))


_LLAMA_CPP = Path(__file__).with_name("llama_cpp_oracle.py")


def llama_cpp(model: Path, **request: Any) -> dict[str, Any]:
    """What llama.cpp makes of a file; see `llama_cpp_oracle.py` for what can be asked.

    It runs in a process of its own, as it ends the process where a file displeases it.
    """
    job = subprocess.run(
        [sys.executable, str(_LLAMA_CPP)], input=json.dumps({"model": str(model)} | request), capture_output=True, text=True, check=False
    )
    if "No module named 'llama_cpp'" in job.stderr:
        raise AssertionError('tests with llama.cpp need it: pip install "triform[interop]"')
    assert job.returncode == 0, job.stderr[-2000:]
    found: dict[str, Any] = json.loads(job.stdout.splitlines()[-1])
    return found
