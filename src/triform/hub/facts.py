"""What the files of a checkpoint hold, told from their headers alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .fields import Fields, read_json
from .files import WeightFiles
from .spec import ADAPTER, base_of, is_adapter

if TYPE_CHECKING:
    from triform.text import Tokenizer

_WEIGHTS, _ADAPTERS = ("model*.safetensors", "pytorch_model*.bin"), ("adapter_model.safetensors", "adapter_model.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Facts:
    """Of a checkpoint's files: the bytes of its weights, how many numbers of each type are stored, and its tokenizer.

    numbers: by the name of the type (bfloat16, Q4_1), the most frequent first; empty where no weights are there.
    tokenizer: its kind (BPE, WordPiece, Unigram); None where there is none. adapter: what adapts which model, in words, where the
    folder is an adapter's, whose weights these are then; None elsewhere.
    """

    bytes: int
    numbers: dict[str, int]
    tokenizer: str | None
    vocab_size: int | None
    chat_template: bool
    adapter: str | None = None


def facts(path: Path) -> Facts:
    """The facts of a model's folder or .gguf file. Reads headers and the tokenizer; needs no torch.

    Raises ValueError of one line that names a file that is damaged.
    """
    tokenizer: Tokenizer | None = None
    numbers: Counter[str] = Counter()
    size = 0
    if path.suffix == ".gguf":
        from .gguf import GGUFFile

        file = GGUFFile(path)
        for stored in file.header.tensors.values():
            numbers[stored.kind] += prod(stored.shape)
        size, tokenizer = path.stat().st_size, file.tokenizer()
    else:
        adapts = is_adapter(path)
        files = next(filter(None, (sorted(path.glob(pattern)) for pattern in (_ADAPTERS if adapts else _WEIGHTS))), [])
        size = sum(file.stat().st_size for file in files)
        for tensor in WeightFiles(files[0] if adapts else path).stored.values() if files else ():
            numbers[tensor.dtype] += prod(tensor.shape)
        if any(True for name in _TOKENIZERS for _ in path.glob(name)):
            from triform.text import Tokenizer

            tokenizer = Tokenizer.load(path)
    return Facts(
        bytes=size,
        numbers=dict(numbers.most_common()),
        tokenizer=type(tokenizer.backend.model).__name__ if tokenizer else None,
        vocab_size=tokenizer.vocab_size if tokenizer else None,
        chat_template=bool(tokenizer and tokenizer.chat_template),
        adapter=_adapter(path) if is_adapter(path) else None,
    )


def _adapter(folder: Path) -> str:
    said = Fields(read_json(folder / ADAPTER), f"{folder / ADAPTER}: ")
    kind = "DoRA" if said.flag("use_dora", False) else "LoRA"
    return f"{kind} of rank {said.whole('r', 8)} for {base_of(folder)}"
