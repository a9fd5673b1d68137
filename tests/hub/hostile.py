"""Files that no one should open without care, and small sound ones to spoil."""

import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BIN = "pytorch_model.bin"
TENSORS = {
    "a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16), "c": torch.zeros(0, 2), "d": torch.tensor(7),
    "e.f": torch.arange(6, dtype=torch.float16).view(2, 3),
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": 11, "max_position_embeddings": 8, "type_vocab_size": 2,
}  # fmt: skip


def header(text: bytes | str | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, or of one that claims another length."""
    text = json.dumps(text) if isinstance(text, dict) else text
    text = text.encode() if isinstance(text, str) else text
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "got 0 bytes with no header"),
    "seven bytes": (b"1234567", "got 7 bytes with no header"),
    "a header of 2^60 bytes": (header(b"{}", length=2**60), f"got 10 bytes with a header of {2**60} bytes; was it cut short"),
    "a header one byte too long": (header(b"{}", length=3), "got 10 bytes with a header of 3 bytes"),
    "no mapping": (header(b"[]"), "expected a header that is a mapping"),
    "not JSON": (header(b"{nothing}"), "the header is not JSON"),
    "not UTF-8": (header(b'{"\xff": 1}'), "the header is not JSON .*utf-8"),
    "UTF-16": (header('{"a":1}'.encode("utf-16-le")), "the header is not JSON"),
    "nested deep": (header(b'{"a":' + b"[" * 200_000), "the header is not JSON"),
    "a number of 5000 digits": (header(b'{"a":' + b"1" * 5000 + b"}"), "integer string conversion"),
    "a name twice": (header('{"a": {}, "a": {}}'), "the header has a twice"),
    "a key twice": (header('{"a": {"dtype": "F32", "dtype": "F32"}}'), "the header has dtype twice"),
    "metadata of numbers": (header({"__metadata__": {"a": 1}}), "__metadata__: expected a mapping of texts"),
    "an entry that is none": (header({"a": 3}), "a: expected dtype, shape and data_offsets"),
    "an entry with more": (header({"a": entry() | {"more": 1}}, bytes(8)), "a: expected dtype, shape and data_offsets"),
    "unknown type": (header({"a": entry(dtype="F4")}, bytes(8)), "a: expected a dtype of BOOL, .*, got F4"),
    "a type that is a list": (header({"a": entry(dtype=[])}, bytes(8)), r"a: expected a dtype of .*, got \[\]"),
    "negative size": (header({"a": entry([-2])}, bytes(8)), r"a: expected a shape of whole numbers .* got \[-2\]"),
    "a size that is true": (header({"a": entry([True, 2])}, bytes(8)), "a: expected a shape of whole numbers"),
    "a size with a fraction": (header({"a": entry([2.0])}, bytes(8)), "a: expected a shape of whole numbers"),
    "a size of 2^63": (header({"a": entry([2**63])}, bytes(8)), "a: expected a shape of whole numbers"),
    "a product of 2^64": (header({"a": entry([2**32, 2**32])}, bytes(8)), "a: expected a shape .* product fits 63 bits"),
    "a product beside zero": (header({"a": entry([2**62, 2**62, 0], [0, 0])}), "a: expected a shape .* product fits 63 bits"),
    "a hundred dimensions": (header({"a": entry([1] * 100, [0, 4])}, bytes(4)), "a: expected a shape"),
    "offsets beyond the file": (header({"a": entry()}, bytes(7)), r"within the 7 bytes that there are, got \[0, 8\]"),
    "offsets backwards": (header({"a": entry(offsets=[8, 0])}, bytes(8)), "a: expected data_offsets within"),
    "negative offsets": (header({"a": entry(offsets=[-8, 0])}, bytes(8)), "a: expected data_offsets within"),
    "three offsets": (header({"a": entry(offsets=[0, 8, 8])}, bytes(8)), "a: expected data_offsets within"),
    "fewer bytes than the shape": (header({"a": entry([2**40])}, bytes(8)), f"a: expected {4 * 2**40} bytes for F32"),
    "more bytes than the shape": (header({"a": entry([1])}, bytes(8)), "a: expected 4 bytes for F32"),
    "overlapping": (header({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "b begins at byte .* tensors overlap or leave a gap"),
    "the same bytes twice": (header({"a": entry(), "b": entry()}, bytes(8)), "b begins at byte .* tensors overlap or leave a gap"),
    "a gap": (header({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "b begins at byte .* tensors overlap or leave a gap"),
    "bytes left over": (header({"a": entry()}, bytes(9)), "expected .* bytes, as the header says, got"),
    "a name of many lines": (header({"a\nb\x1b[31m": entry()}, bytes(9)[:7]), r"'a\\nb\\x1b\[31m': expected data_offsets"),
    "half a character": (header('{"\\ud800": 3}'), r"'\\ud800': expected dtype"),
}


class Runs:
    """Runs when it is unpickled without care."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _saved(made: Any, new: bool) -> Callable[[Path], None]:
    return lambda file: torch.save(made(file.with_name("ran")) if callable(made) else made, file, _use_new_zipfile_serialization=new)


def _raw(content: Any) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content(file.with_name("ran"))) and None


def _deflated(file: Path) -> None:
    torch.save({"a": torch.zeros(2**20)}, file)
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def _runs(ran: Path) -> Any:
    return {"a": torch.ones(2), "b": Runs(os.system, f"touch {ran}")}


def _quantized(_: Path) -> Any:
    return {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}


def _scripted(file: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)


def _far(file: Path) -> None:
    """A record that says it is larger than the file."""
    torch.save({"a": torch.ones(4)}, file)
    content = file.read_bytes()
    at = content.rindex(b"data/0")  # in the central directory
    start = content.rindex(b"PK\x01\x02", 0, at)
    file.write_bytes(content[: start + 20] + struct.pack("<II", 2**31, 2**31) + content[start + 28 :])


PICKLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "runs a command": (_saved(_runs, True), "the pickle asks for (posix|nt).system, and what is more than tensors could run code"),
    "runs a command, old": (_saved(_runs, False), "the pickle asks for (posix|nt).system"),
    "evaluates": (_saved({"a": Runs(eval, "1")}, True), "the pickle asks for (__builtin__|builtins)?.?eval"),
    "a plain pickle that runs": (_raw(lambda ran: pickle.dumps(Runs(os.system, f"touch {ran}"), 2)), "the pickle asks for posix.system"),
    "numbers": (_saved({"a": 3}, True), "a: expected a tensor, got a int"),
    "nested": (_saved({"model": TENSORS}, True), "model: expected a tensor, got a dict"),
    "a list": (_saved([torch.ones(1)], False), "expected a mapping of names to tensors"),
    "sparse": (_saved({"a": torch.eye(2).to_sparse()}, True), "a: expected plain numbers, got torch.float32 in torch.sparse_coo"),
    "quantized": (_saved(_quantized, True), "not a file of tensors that torch.save wrote .*quantized"),
    "one number 2^40 times": (_saved({"a": torch.ones(1).expand(2**40)}, True), "larger than its record of 4 bytes"),
    "one number 2^40 times, old": (_saved({"a": torch.ones(1).expand(2**40)}, False), "its tensors are larger than the file"),
    "under many names": (_saved(lambda _: dict.fromkeys("abcdefghijk", torch.ones(10_000)), True), "its tensors are larger than the file"),
    "compressed": (_deflated, "expected it stored as it is, found it compressed"),
    "a record beyond the end": (_far, "are more than the file has|not a file"),
    "code of TorchScript": (_scripted, "compressed|TorchScript|not a file of tensors"),
    "empty": (_raw(lambda _: b""), "not a file of tensors that torch.save wrote"),
    "noise": (_raw(lambda _: random.Random(0).randbytes(999)), "not a file of tensors that torch.save wrote"),
    "a zip of nothing": (_raw(lambda _: b"PK\5\6" + bytes(18)), "not a file of tensors that torch.save wrote"),
}
