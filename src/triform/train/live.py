"""How many bytes of tensors are alive while something runs on the CPU, seen in two ways."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MARK = "triform: peak from here"


class Allocations:
    """The peak of what torch's CPU allocator has given out inside the context, as its profiler records it.

    Everything counts that is taken inside it, what kernels take for a moment included, so build the model there too.
    peak: bytes, once the context is over; since the last `mark`, if there is one.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._profile = profile(profile_memory=True)

    def __enter__(self) -> Allocations:
        gc.collect()  # what is garbage by now is not to be freed, and subtracted, inside
        self._profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def mark(self) -> None:
        """Forget the peak so far."""
        with record_function(_MARK):
            pass

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)  # type: ignore[no-untyped-call]
        record = self._profile.kineto_results
        assert record is not None
        now = 0
        for event in sorted(record.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()  # type: ignore[attr-defined]
                self.peak = max(self.peak, now)
            elif event.name() == _MARK:
                self.peak = now


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every storage that an operation under it makes or meets, until the storage dies.

    A storage counts once, however many views it has, and for as long as anything holds it: a Python name, a module,
    or autograd's graph. What a kernel takes and gives back inside one operation is not seen, and autograd adds up the
    gradients of a tensor that serves twice in a new one while a mode like this is on, and in place otherwise. Works on real
    tensors and on fake ones (`torch._subclasses.FakeTensorMode`), and not on those of the meta device.

    now, peak: bytes. With a `label`, a function of the operation and its result, `at_peak` holds the peak's bytes
    by label; keeping that costs a copy at every new peak.
    """

    def __init__(self, before: Iterable[Tensor] = (), label: Callable[[str, Tensor], str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.label = label
        self.by_label: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._sizes: dict[int, int] = {}
        for tensor in before:
            self.add("before", tensor)

    def add(self, operation: str, tensor: Tensor) -> None:
        """Count a tensor's storage, if it is new or has been resized."""
        storage = tensor.untyped_storage()
        if tensor.device.type == "meta":
            return
        key, size = storage._cdata, storage.nbytes()
        old = self._sizes.get(key)
        if old == size:
            return
        name = self.label(operation, tensor) if self.label is not None else ""
        self._sizes[key] = size
        self.now += size - (old or 0)
        self.by_label[name] += size - (old or 0)
        if old is None:
            weakref.finalize(storage, self._died, key, name)
        if self.now > self.peak:
            self.peak = self.now
            if self.label is not None:
                self.at_peak = self.by_label.copy()

    def _died(self, key: int, name: str) -> None:
        size = self._sizes.pop(key)
        self.now -= size
        self.by_label[name] -= size

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for tensor in tree_leaves((args, dict(kwargs), result)):
            if isinstance(tensor, Tensor):
                self.add(str(func), tensor)
        return result


def tensors_of(model: torch.nn.Module) -> list[Tensor]:
    """A model's weights, buffers and gradients."""
    weights = list(model.parameters())
    return [*weights, *model.buffers(), *(w.grad for w in weights if w.grad is not None)]
