"""Real weights in transformers, to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def transformers_model(file: Path) -> Any:
    """A LLaMA of a .gguf file."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    theirs = LlamaForCausalLM(LlamaConfig(**load_gguf_checkpoint(str(file))["config"])).eval()
    theirs.load_state_dict(load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=theirs)["tensors"], strict=False)
    theirs.tie_weights()
    return theirs
