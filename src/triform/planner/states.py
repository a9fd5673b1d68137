"""What an optimizer keeps of each weight, and what its step takes besides (see train.optimizer)."""

from __future__ import annotations

from math import prod

from .setting import Device, OptimizerName

_BLOCK, _SMALLEST = 256, 4096  # of the 8-bit AdamW: numbers that share a scale; below so many, moments stay in fp32
_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 24}  # numbers that it widens at a time
_TABLES = 2 * ((1 << 18) + 4 * 256)  # its tables of bytes and numbers, with and without a sign
_COUNTER = 4


def kept(name: str, shape: tuple[int, ...], optimizer: OptimizerName) -> int:
    """Bytes of an optimizer's state of one weight."""
    count = prod(shape)
    match optimizer:
        case "adamw8bit" if count >= _SMALLEST:
            return 2 * (count + 4 * -(-count // _BLOCK)) + _COUNTER
        case "adafactor":
            factored = len(shape) > 1
            return 4 * (count // shape[-1] + count // shape[-2] if factored else count) + _COUNTER
        case "sgd":
            return 4 * count
        case "muon" if is_muons(name, shape):
            return 4 * count
        case _:
            return 8 * count + _COUNTER


def is_muons(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Muon has this weight: a matrix of a layer."""
    return ".layers." in name and len(shape) == 2


def fixed(optimizer: OptimizerName) -> int:
    """Bytes of state that no weight owns."""
    return _TABLES if optimizer == "adamw8bit" else 0


def working(shapes: dict[str, tuple[int, ...]], optimizer: OptimizerName, device: Device) -> int:
    """Bytes that a step takes and gives back."""
    counts = [prod(shape) for shape in shapes.values()]
    match optimizer:
        case "adamw":
            return 0  # one fused kernel
        case "adamw8bit":
            return 25 * min(max(counts), _AT_ONCE[device])
        case "adafactor" | "sgd":  # on a card all at once, on the processor weight by weight; vectors do not decay
            matrices = [prod(shape) for shape in shapes.values() if len(shape) > 1 or optimizer == "adafactor"]
            return 4 * (sum(matrices) if device == "cuda" else max(matrices, default=0))
        case "muon":
            return max((_newton_schulz(*shape) for name, shape in shapes.items() if is_muons(name, shape)), default=0)


def _newton_schulz(rows: int, columns: int) -> int:
    """Muon's update of one matrix: it in fp32, twice in bf16, and two products of its shorter side."""
    return 8 * rows * columns + 4 * min(rows, columns) ** 2
