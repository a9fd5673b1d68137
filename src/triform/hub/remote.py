"""Models of the Hugging Face hub and of ModelScope: fetched, or found in the caches of their own packages.

Only the files that are read here are fetched. Names are `owner/name[@revision][:file.gguf]`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

_BESIDE = (
    "config*.json", "generation_config.json", "triform.json", "task.json", "modules.json", "sentence_bert_config.json",
    "[0-9]*_Pooling/config.json", "additional_chat_templates/*.jinja", "preprocessor_config.json",
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "*.model", "*.spm", "*.tiktoken", "*.jinja", "chat_template.json",
)  # fmt: skip
# Of these the first that a repository has: nothing pickled where there is something else.
_WEIGHTS = (
    ("model.safetensors", r"model\.safetensors"),
    ("model.safetensors.index.json", r"model-\d+-of-(\d+)\.safetensors"),
    ("pytorch_model.bin", r"pytorch_model\.bin"),
    ("pytorch_model.bin.index.json", r"pytorch_model-\d+-of-(\d+)\.bin"),
)


class Place(NamedTuple):
    """What is asked of a hub: a repository, a revision (None: the default one), and a .gguf file of it (None: a folder).

    weights: whether they are asked for too; without them what a folder says of its model is enough.
    """

    repository: str
    revision: str | None
    file: str | None
    weights: bool = True


def place(name: str, weights: bool = True) -> Place:
    """The parts of `owner/name[@revision][:file.gguf]`. Raises ValueError for anything else."""
    found = re.fullmatch(r"((?:[\w.-]+/)?[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+\.gguf))?", name)
    if found is None or ".." in name:
        raise ValueError(f"{name!r}: expected owner/name of a hub, with @revision and :file.gguf where they are wanted")
    return Place(found[1], found[2], found[3], weights)


def wanted(files: Iterable[str], place: Place) -> list[str]:
    """Which of a repository's files are read here. Raises ValueError when its weights are not among them."""
    files = sorted(files)
    if place.file is not None:
        if place.file not in files:
            raise ValueError(f"{place.repository} has no {place.file}; {_ggufs(files) or 'it has no .gguf file'}")
        return [place.file]
    beside = [name for name in files if any(_matches(name, known) for known in _BESIDE)]
    if not place.weights and {"config.json", "triform.json"} & set(beside):
        return beside
    for first, pattern in _WEIGHTS:
        if first not in files:
            continue
        weights = {name: found for name in files if (found := re.fullmatch(pattern, name))}
        shards = max((int(found[1]) for found in weights.values() if found.lastindex), default=1)
        if len(weights) != shards:
            raise ValueError(f"{place.repository} has {len(weights)} of the {shards} shards of its weights")
        return sorted({*beside, *weights, first})
    raise ValueError(f"{place.repository} has no weights that are read here; {_ggufs(files) or 'expected model.safetensors'}")


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _ggufs(files: Iterable[str]) -> str:
    names = [name for name in files if name.endswith(".gguf")]
    return f"append one of its files: {', '.join(':' + name for name in names[:4])}{' …' if len(names) > 4 else ''}" if names else ""


def hugging_face(name: str, hint: str = "", *, weights: bool = True) -> Path:
    """The folder (or .gguf file) of a model of the Hugging Face hub, fetched where it is not in the hub's cache.

    HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN are heeded. Without a network a whole copy in the cache serves.
    hint: what to add when there is no such model. weights: False leaves the weights where they are.

    Raises ValueError of one line: no such model or revision, gated, no network, offline and not in the cache.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants

    asked = place(name, weights)
    where = os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")
    options: dict[str, Any] = {"repo_id": asked.repository, "revision": asked.revision, "endpoint": where}
    if constants.HF_HUB_OFFLINE:
        copy = _cached(asked, options)
        if copy is None:
            raise ValueError(f"{name}: HF_HUB_OFFLINE is set, and the hub's cache holds no whole copy; unset it to fetch the model")
        return copy
    try:
        told = hub.HfApi(endpoint=where).model_info(asked.repository, revision=asked.revision)
    except Exception as error:  # whatever the network answers: the classes differ with the hub's version
        return _instead(error, name, asked, options, hint)
    chosen = wanted([file.rfilename for file in told.siblings or ()], asked)
    try:
        return _inside(Path(hub.snapshot_download(**options, allow_patterns=chosen, tqdm_class=_bar())), asked)
    except Exception as error:
        return _instead(error, name, asked, options, hint)


def _instead(error: Exception, name: str, asked: Place, options: dict[str, Any], hint: str) -> Path:
    """The copy in the cache where the hub could not be reached. Raises ValueError for what it answered, and where there is none."""
    from huggingface_hub import errors

    where, repository = options["endpoint"], options["repo_id"]
    if isinstance(error, errors.GatedRepoError):
        message = f"its owner asks for consent; give it at {where}/{repository}, then log in with `hf auth login` or HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        message = f"{where} has the model, but not the revision {options['revision']!r}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = f"{where} has no such model, or it is private (`hf auth login`, HF_TOKEN){hint}"
    elif isinstance(error, errors.HFValidationError):
        message = f"no name of the Hugging Face hub ({_line(error)})"
    else:
        copy = _cached(asked, options)
        if copy is not None:
            return copy
        message = f"{where} could not be reached ({_line(error)}), and the hub's cache holds no whole copy"
    raise ValueError(f"{name}: {message}") from None


def _cached(asked: Place, options: dict[str, Any]) -> Path | None:
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(**options, local_files_only=True, allow_patterns=[asked.file or "config.json"]))
        wanted(_files(folder), asked)
    except (OSError, ValueError):
        return None
    return _inside(folder, asked)


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _inside(folder: Path, asked: Place) -> Path:
    return folder if asked.file is None else folder / asked.file


def _bar() -> type:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):  # type: ignore[misc]
        """The hub's bar, and none where nobody looks."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            hidden = {"disable": options.get("disable") or not sys.stderr.isatty()}
            super().__init__(*arguments, **options | hidden)  # type: ignore[no-untyped-call]

    return Bar


def modelscope(name: str, *, weights: bool = True) -> Path:
    """The folder (or .gguf file) of a model of ModelScope, through the package modelscope and its cache.

    Raises ValueError of one line, as `hugging_face` does, and when the package is not installed.
    """
    try:
        from modelscope.hub.api import HubApi
        from modelscope.hub.snapshot_download import snapshot_download
    except ModuleNotFoundError:
        raise ValueError(f'modelscope:{name} needs the package modelscope; pip install "triform[modelscope]"') from None
    asked = place(name, weights)
    options: dict[str, Any] = {} if asked.revision is None else {"revision": asked.revision}
    try:
        files = [str(file["Path"]) for file in HubApi().get_model_files(asked.repository, recursive=True, **options)]
        chosen = wanted(files, asked)
        return _inside(Path(snapshot_download(asked.repository, allow_patterns=chosen, **options)), asked)
    except Exception as error:  # whatever ModelScope or the network answers
        told = _line(error)
    try:
        folder = Path(snapshot_download(asked.repository, local_files_only=True, **options))
        wanted(_files(folder), asked)
    except Exception:
        raise ValueError(f"modelscope:{name} could not be fetched ({told}), and ModelScope's cache holds no whole copy") from None
    return _inside(folder, asked)


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

