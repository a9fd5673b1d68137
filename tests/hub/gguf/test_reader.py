"""Tensors out of GGUF files: every type that is read, against the reference of the gguf package."""

import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from gguf_tools import SPECS, build, entry, file, llama_file, pair, text

from triform.hub.gguf import GGUFFile, reader, write
from triform.hub.gguf.header import BLOCKS

KINDS = {name: (number, elements, width) for number, (name, elements, width) in BLOCKS.items()}
ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def stored(tmp_path, kind: str, data: np.ndarray, shape: tuple[int, int]) -> GGUFFile:
    path = tmp_path / f"{kind}.gguf"
    path.write_bytes(file([ARCHITECTURE], [entry("t", shape[::-1], KINDS[kind][0])], data.tobytes()))
    return GGUFFile(path)


def blocks(kind: str, rows: int, columns: int) -> np.ndarray:
    """Any blocks of a type, with scales that are no larger than two: bytes above 0x3f would be large fp16 numbers."""
    _, elements, width = KINDS[kind]
    return np.random.default_rng(0).integers(0, 0x40, (rows, columns // elements * width), dtype=np.uint8)


@pytest.mark.parametrize("kind", [kind for kind, (_, elements, _) in KINDS.items() if elements > 1])
@pytest.mark.parametrize("chunk", [2**20, 512])
def test_quantized_tensors_are_as_the_reference_dequantizes(tmp_path, monkeypatch, kind, chunk):
    monkeypatch.setattr(reader, "_CHUNK", chunk)
    data = blocks(kind, 3, 512)
    found = stored(tmp_path, kind, data, (3, 512))
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert found.shape("t") == (3, 512)
    assert found.dtype("t") == found["t"].dtype == torch.float32
    assert np.array_equal(found["t"].numpy(), expected)
    data[1, 0] ^= 1  # one bit of one scale, as a control
    assert not np.array_equal(found["t"].numpy(), gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_plain_tensors_come_as_stored(tmp_path, kind, dtype):
    tensor = torch.randn(3, 5).to(dtype)
    found = stored(tmp_path, kind, tensor.view(torch.uint8).numpy(), (3, 5))
    assert found.dtype("t") == dtype
    assert torch.equal(found["t"], tensor)


def test_a_file_is_a_mapping_of_names(tmp_path):
    found = stored(tmp_path, "F32", np.zeros(15, np.float32), (3, 5))
    assert list(found) == ["t"]
    assert len(found) == 1
    with pytest.raises(KeyError):
        found["u"]


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    found = stored(tmp_path, "F32", np.zeros(15, np.float32), (3, 5))
    with found.path.open("r+b") as shorter:
        shorter.truncate(found.path.stat().st_size - 4)
    with pytest.raises(ValueError, match="ended while it was read"):
        found["t"]


def test_llama_turns_neighbours_and_other_architectures_halves(tmp_path):
    for name, spec in (("llama", SPECS["llama"]), ("qwen2", SPECS["qwen2"])):
        model = build(spec)
        write(model, None, tmp_path / f"{name}.gguf", "fp32")
        theirs = GGUFFile(tmp_path / f"{name}.gguf")["blk.1.attn_k.weight"]
        ours = model.decoder.layers["1"].attention.body.key.weight
        half = [row for i in range(8) for row in (i, i + 8)]  # heads of 16: 0, 8, 1, 9, ...
        order = [*half, *(16 + row for row in half)] if name == "llama" else list(range(32))
        assert torch.equal(theirs, ours[order])


def test_a_configuration_is_read_without_torch(tmp_path):
    write(build(SPECS["llama3"]), None, tmp_path / "m.gguf", "fp32")
    code = "import sys; from triform.hub import read_spec; assert read_spec(sys.argv[1]).last.depth == 3; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.gguf")]).returncode == 0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"general__architecture": "falcon"}, "general.architecture: expected one of llama, qwen2"),
        ({"general__architecture": None}, "general.architecture: expected text, got nothing"),
        ({"general__architecture": "x" * 5000}, "general.architecture: expected one of llama"),
        ({"llama__block_count": "three"}, "llama.block_count: expected a whole number"),
        ({"llama__block_count": 9}, "block_count: expected at most the file's 3 tensors"),
        ({"llama__attention__causal": False}, "attention.causal: expected True"),
        ({"llama__final_logit_softcapping": 30.0}, "final_logit_softcapping: expected nothing, as it is not supported"),
        ({"llama__attention__clamp_kqv": 8.0}, "attention.clamp_kqv: expected no such key"),
        ({"llama__rope__dimension_count": 1}, "rope.dimension_count: expected 2"),
        ({"llama__rope__scaling__type": "longrope"}, "rope.scaling.type: expected one of none, linear, yarn"),
        ({"llama__attention__head_count": 3}, "heads that make up the 4 rows of attn_q"),
        ({"llama__vocab_size": 5}, "token_embd.weight is (4, 4), not (5, 4)"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "expected a number above zero"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changed, said):
    (tmp_path / "whole.gguf").write_bytes(llama_file())
    (tmp_path / "m.gguf").write_bytes(llama_file(**changed))
    assert GGUFFile(tmp_path / "whole.gguf").spec.last.width == 4
    with pytest.raises(ValueError, match=r"m\.gguf: ") as error:
        GGUFFile(tmp_path / "m.gguf").spec  # noqa: B018
    assert said in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))
