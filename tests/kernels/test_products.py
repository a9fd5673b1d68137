"""Products with packed weights: against torch, against GGUF's blocks, and the same whatever they are computed beside."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import byref

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as ggml_quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triform.kernels import Arena, PackedEmbedding, PackedLinear, library, pack, pack_blocks, packed_bytes, product, unpack
from triform.kernels.build import variants
from triform.kernels.linear import plain_product
from triform.kernels.packing import KINDS, quantize

NATIVE = library()
TYPES = {"int8": GGMLQuantizationType.Q8_0, "int4": GGMLQuantizationType.Q4_0}
# Sums of a hundred products in fp32, in another order than torch's; a rounding of the input that fell the other way is 1/127 of a number.
TOLERANCE = 5e-6
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=list(variants()))
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each variant that this processor can run; the others are left out by name."""
    assert NATIVE is not None, "these tests need a C++ compiler"
    best = NATIVE.variant()
    name = request.param if not NATIVE.use(request.param.encode()) else best.decode()
    yield name
    NATIVE.done(NATIVE.use(best))


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (40, 96), (17, 50), (33, 31), (48, 1), (100, 576)])
def test_products_are_torchs(variant: str, kind: str, rows: int, columns: int) -> None:
    weight, bias = matrix(rows, columns), matrix(1, rows, seed=1)[0]
    packed = pack(weight, kind)
    for count in (1, 2, 3, 7, 8, 9, 21):
        x = matrix(count, columns, seed=count)
        found, expected = product(packed, x, bias), plain_product(packed, x, bias)
        assert difference(found, expected) < TOLERANCE
        assert difference(found, plain_product(packed, x)) > TOLERANCE, "the bias was of no consequence"
        for row in range(count):
            assert torch.equal(product(packed, x[row : row + 1], bias)[0], found[row]), "a row depends on the others"


@pytest.mark.parametrize(("kind", "least", "most"), [("fp32", 0, 1e-6), ("bf16", 1e-4, 1e-2), ("int8", 1e-4, 2e-2), ("int4", 1e-2, 2e-1)])
def test_what_rounding_costs(kind: str, least: float, most: float) -> None:
    """Each precision is as good as it should be, and no better."""
    weight, x = matrix(64, 256), matrix(8, 256, seed=1)
    assert least <= difference(product(pack(weight, kind), x), x @ weight.T) < most


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_ggufs(kind: str) -> None:
    weight = torch.cat((matrix(20, 96), torch.zeros(2, 96), matrix(3, 96, seed=1) * 1e-6))
    theirs = ggml_quantize(weight.numpy(), TYPES[kind])
    assert np.array_equal(quantize(weight, kind).view(len(weight), -1).numpy(), theirs)
    read = pack_blocks(torch.from_numpy(theirs), 96, kind)
    assert torch.equal(read.data, pack(weight, kind).data)
    values = torch.from_numpy(dequantize(theirs, TYPES[kind]))
    assert torch.equal(unpack(read), values)
    assert torch.equal(unpack(pack(values, kind)), values), "what was rounded once is not rounded again"
    assert not torch.equal(unpack(read), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_tokens_are_rows(variant: str, kind: str) -> None:
    packed = pack(matrix(50, 70), kind)
    ids = torch.tensor([[0, 49, 17], [16, 15, 3]])
    table = PackedEmbedding(packed)
    assert torch.equal(table(ids), unpack(packed)[ids])
    with pytest.raises(ValueError, match="expected ids below 50, got 50"):
        table(torch.tensor([50]))
    with pytest.raises(ValueError, match="got -1"):
        table(torch.tensor([-1]))


@given(st.integers(1, 70), st.integers(1, 80), st.sampled_from(list(KINDS)), st.integers(0, 2**16))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_unpacking_gives_back_what_was_packed(rows: int, columns: int, kind: str, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    packed = pack(weight, kind)
    assert packed.data.numel() == packed_bytes(rows, columns, kind)
    first = seed % rows
    assert torch.equal(unpack(packed, first, rows), unpack(packed)[first:])
    if kind == "fp32":
        assert torch.equal(unpack(packed), weight)
    elif kind == "bf16":
        assert torch.equal(unpack(packed), weight.bfloat16().float())
    else:
        assert torch.equal(pack(unpack(packed), kind).data, packed.data)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_so(variant: str, kind: str) -> None:
    packed, x = pack(matrix(16, 64), kind), matrix(3, 64, seed=1)
    x[1, 40] = torch.nan
    x[2, 3] = torch.inf
    found = product(packed, x)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()
    assert not found[2].isfinite().any()


def test_a_layer_keeps_its_shape_and_type() -> None:
    layer = PackedLinear(pack(matrix(24, 40), "bf16"), torch.ones(24))
    assert layer(torch.zeros(2, 3, 40)).shape == (2, 3, 24)
    assert layer(torch.zeros(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer(torch.zeros(0, 40)).shape == (0, 24)
    assert layer.to(torch.float64).data.dtype == torch.uint8
    with pytest.raises(ValueError, match="expected inputs of 40 numbers, got 41"):
        layer(torch.zeros(1, 41))


def test_memory_of_a_whole_model_is_one_piece() -> None:
    arena = Arena(packed_bytes(32, 64, "fp32") + packed_bytes(16, 64, "int4"))
    first, second = pack(matrix(32, 64), "fp32", arena), pack(matrix(16, 64), "int4", arena)
    assert second.data.data_ptr() == first.data.data_ptr() + first.data.numel()
    assert torch.equal(unpack(first), matrix(32, 64))


def test_sizes_are_checked_before_memory_is_touched() -> None:
    assert NATIVE is not None
    packed = pack(matrix(16, 32), "int8")
    x, y, room = torch.zeros(1, 32), torch.zeros(1, 16), torch.zeros(4096, dtype=torch.uint8)

    def call(rows: int = 1, size: int = 4096, threads: int = 1) -> None:
        asked = packed.matrix()
        NATIVE.done(NATIVE.product(byref(asked), x.data_ptr(), rows, y.data_ptr(), room.data_ptr(), size, threads))

    call()
    changes = [("rows", 32, "bytes"), ("columns", 64, "bytes"), ("kind", 9, "kind"), ("columns", -1, "sizes"), ("data", 0, "bytes")]
    for name, value, message in changes:
        asked = packed.matrix()
        setattr(asked, name, value)
        with pytest.raises(ValueError, match=message):
            NATIVE.done(NATIVE.product(byref(asked), x.data_ptr(), 1, y.data_ptr(), room.data_ptr(), 4096, 1))
    with pytest.raises(ValueError, match="workspace"):
        call(size=8)
    with pytest.raises(ValueError, match="threads"):
        call(threads=0)
    with pytest.raises(ValueError, match="rows"):
        call(rows=0)
    with pytest.raises(ValueError, match="expected 68 bytes a row"):
        pack_blocks(torch.zeros(4, 34, dtype=torch.uint8), 64, "int8")


def test_threads_change_nothing(variant: str) -> None:
    packed, x = pack(matrix(200, 96), "int4"), matrix(5, 96, seed=1)
    alone = product(packed, x)
    torch.set_num_threads(3)
    try:
        assert torch.equal(product(packed, x), alone)
    finally:
        torch.set_num_threads(1)
