"""What a few real steps of a model took on this machine, remembered for later plans."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from triform import config
from triform.config.files import cache_folder, replacing

from .machine import fingerprint, read_json
from .setting import Setting

_IGNORED = ("device", "attention")  # this machine has one device, and Triform trains with one kernel


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured.

    step_seconds: of a step, its batches' making included. step_flops: of the same steps, padding and recomputation
    included. step_tokens: of them, padding left out. utilisation: of this machine's measured peak at the precision.
    validation_seconds, checkpoint_seconds: of one each; 0 where there are none. steps: how many were timed.
    spread: standard deviation of the steps' seconds over their mean. precision, day: of the measurement.
    """

    step_seconds: float
    step_flops: float
    step_tokens: float
    utilisation: float
    validation_seconds: float
    checkpoint_seconds: float
    steps: int
    spread: float
    precision: str
    day: str

    @property
    def reason(self) -> str:
        """Where the utilisation is from, in words."""
        return f"measured on this machine on {self.day}: {self.steps} steps of {self.step_seconds:.3g} s (± {self.spread:.0%})"

    def run_seconds(self, steps: int, *, validate_every: int | None = None, checkpoint_every: int | None = None) -> float:
        """Seconds that a run of `steps` takes from its first step to its last, validations and checkpoints included.

        Reading and preparing the data, and building the model, come before. None: no validation, or no checkpoint.
        A run validates at its end too, and writes no checkpoint there. Raises ValueError below one step.
        """
        for name, value in {"steps": steps, "validate_every": validate_every, "checkpoint_every": checkpoint_every}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        validations = 0 if validate_every is None else -(-steps // validate_every)
        saves = 0 if checkpoint_every is None else (steps - 1) // checkpoint_every
        return steps * self.step_seconds + validations * self.validation_seconds + saves * self.checkpoint_seconds


def remember(model: config.Model, setting: Setting, found: Calibration) -> None:
    """Keep a measurement of a model and a setting on this machine in the cache folder."""
    file = _file(model, setting)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")


def recall(model: config.Model, setting: Setting) -> Calibration | None:
    """What was measured of this model and setting on this machine; None where nothing was. Imports no torch."""
    found = read_json(_file(model, setting))
    return None if found is None else Calibration(**found)


def _file(model: config.Model, setting: Setting) -> Path:
    facts = {
        "machine": fingerprint(),
        "triform": version("triform"),
        "model": config.to_dict(model, hint=config.Model),
        "setting": {name: value for name, value in asdict(setting).items() if name not in _IGNORED},
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / "calibration" / f"{name}.json"
