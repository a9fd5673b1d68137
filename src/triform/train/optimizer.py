"""Optimizers and schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from triform.kernels import training as native
from triform.nn import DualEncoder, Transformer

from .adamw import AdamW
from .adamw8bit import AdamW8bit
from .recipe import TrainRecipe


def schedule(step: int, recipe: TrainRecipe) -> float:
    """The share of the peak learning rate at a step counted from 0: linear warm-up, then the recipe's schedule, down to the floor.

    wsd stays at the peak until the last `decay` of the steps and falls linearly there (Hu et al. 2024, section 4.1).
    inverse_sqrt is sqrt(warmup / steps done), which with the peak width^-0.5 * warmup^-0.5 is equation 3 of
    Vaswani et al. (2017).
    """
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "inverse_sqrt":
        return max(recipe.floor, math.sqrt(max(1, recipe.warmup) / (step + 1)))
    done = min(1.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    if recipe.schedule == "wsd":
        last = min(recipe.decay * recipe.steps, recipe.steps - recipe.warmup)
        done = min(1.0, max(0.0, (step - recipe.steps + last) / last)) if last > 0 else 0.0
    falls = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "wsd": 1 - done, "constant": 1.0}
    return recipe.floor + (1 - recipe.floor) * falls[recipe.schedule]


def _is_matrix_of_a_layer(name: str, parameter: Tensor) -> bool:
    return ".layers." in name and parameter.ndim == 2


def _build(groups: list[dict[str, Any]], recipe: TrainRecipe) -> torch.optim.Optimizer:
    betas = (recipe.betas[0], recipe.betas[1])
    match recipe.optimizer:
        case "adamw8bit":
            return AdamW8bit(groups, lr=recipe.rate, betas=betas)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=recipe.rate, eps=(1e-15, 1e-3))  # torch squares the first: 1e-30
        case "sgd":
            return torch.optim.SGD(groups, lr=recipe.rate, momentum=betas[0])
        case _:
            on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
            return (AdamW if on_cpu else torch.optim.AdamW)(groups, lr=recipe.rate, betas=betas, eps=1e-8, fused=True)


class Optimizer:
    """The optimizer of a recipe over a model's named parameters, frozen ones left out; Muon has AdamW beside it.

    Only matrices decay: norms, biases and other vectors are left alone.
    """

    def __init__(self, model: Transformer | DualEncoder, recipe: TrainRecipe) -> None:
        self.names: dict[Tensor, str] = {p: n for n, p in model.named_parameters() if p.requires_grad}
        muon: list[Tensor] = []
        decayed: list[Tensor] = []
        rest: list[Tensor] = []
        for parameter, name in self.names.items():
            if recipe.optimizer == "muon" and _is_matrix_of_a_layer(name, parameter):
                muon.append(parameter)
            else:
                (decayed if parameter.ndim >= 2 else rest).append(parameter)
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.parts = [_build(groups, recipe)]
        if muon:
            self.parts.append(torch.optim.Muon(muon, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, momentum=0.95))
        self.takes_narrow = recipe.optimizer in ("adamw", "adamw8bit")  # gradients of fewer bytes than the parameters
        self.peaks = [[group["lr"] for group in part.param_groups] for part in self.parts]

    def step(self, share: float, scale: float = 1.0) -> None:
        """One step at a share of the peak learning rates, with the gradients times `scale`; they are dropped after it."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            if isinstance(part, AdamW):
                part.scale = scale
            elif scale != 1:
                torch._foreach_mul_([p.grad for group in part.param_groups for p in group["params"] if p.grad is not None], scale)
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of state, keyed by `state's name/parameter's name`; zeros for a parameter that had no gradient yet."""
        out: dict[str, Tensor] = {}
        for parameter, part in self._owners():
            found = part.state.get(parameter, {})
            for kind, (shape, dtype) in _kinds(parameter, part).items():
                value = found[kind] if kind in found else torch.zeros(shape, dtype=dtype, device=parameter.device)
                out[f"{kind}/{self.names[parameter]}"] = torch.as_tensor(value)
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up a state that `state` gave. Raises ValueError for one of another model or optimizer, before anything is changed."""
        wanted = {}
        for parameter, part in self._owners():
            for kind, (shape, dtype) in _kinds(parameter, part).items():
                wanted[f"{kind}/{self.names[parameter]}"] = (parameter, part, kind, shape, dtype)
        for what, names in (("lacks", wanted.keys() - state.keys()), ("also has", state.keys() - wanted.keys())):
            if names:
                raise ValueError(f"the optimizer's state {what} {_listed(names)}; it is of another model or another optimizer")
        for name, (*_, shape, dtype) in wanted.items():
            if state[name].shape != shape:
                raise ValueError(f"the optimizer's state has {name} of {tuple(state[name].shape)}, expected {tuple(shape)}")
            if state[name].dtype != dtype:
                raise ValueError(f"the optimizer's state has {name} in {state[name].dtype}, expected {dtype}")
        for name, (parameter, part, kind, *_) in wanted.items():
            part.state[parameter][kind] = state[name].to("cpu" if _stays(kind, part) else parameter.device, copy=True)

    def _owners(self) -> Iterator[tuple[Tensor, torch.optim.Optimizer]]:
        for part in self.parts:
            for group in part.param_groups:
                yield from ((parameter, part) for parameter in group["params"])


def _kinds(parameter: Tensor, part: torch.optim.Optimizer) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What an optimizer keeps of a parameter: the shape and dtype of each tensor."""
    shape, count = parameter.shape, (torch.Size(), torch.float32)
    match part:
        case AdamW8bit():
            return part.kinds(parameter)
        case torch.optim.AdamW():
            return {"step": count, "exp_avg": (shape, parameter.dtype), "exp_avg_sq": (shape, parameter.dtype)}
        case torch.optim.Adafactor() if parameter.ndim > 1:
            rows, columns = torch.Size((*shape[:-1], 1)), torch.Size((*shape[:-2], 1, shape[-1]))
            return {"step": count, "row_var": (rows, parameter.dtype), "col_var": (columns, parameter.dtype)}
        case torch.optim.Adafactor():
            return {"step": count, "variance": (shape, parameter.dtype)}
        case torch.optim.SGD() if part.defaults["momentum"] == 0:
            return {}
        case _:
            return {"momentum_buffer": (shape, parameter.dtype)}


def _stays(kind: str, part: torch.optim.Optimizer) -> bool:
    """Whether a tensor of state is a counter that its optimizer keeps on the CPU."""
    return kind == "step" and isinstance(part, AdamW8bit | torch.optim.Adafactor)


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def norm_of_gradients(model: nn.Module) -> float:
    """The norm of all gradients together."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if native.serves(*gradients):
        return native.total_norm(gradients)
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    return float(nn.utils.get_total_norm(norms))


def clip_factor(norm: float, limit: float) -> float:
    """What gradients of a norm are multiplied with for theirs to be at most `limit`, as `torch.nn.utils.clip_grad_norm_` has it."""
    return 1.0 if norm <= limit else limit / (norm + 1e-6)
