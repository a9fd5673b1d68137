"""A task told by examples: the examples in, a prompt out, and of the text that follows the answer (Brown et al. 2020)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .constrained import OneOf
from .sampling import Sampling

_HAN = re.compile("[\u3400-\u9fff]")
_LARGEST = 2**20  # characters of all examples
Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """What goes in and what comes out."""

    input: str
    output: str


@dataclass(frozen=True)
class FewShot:
    """A task.

    examples: as pairs, mappings with `input` and `output`, or `Example`s.
    instruction: stands before them.
    names: what input and output are called in the prompt; left out, "Input" and "Output", or 输入 and 输出 where the examples
        are in Chinese.

    Raises ValueError for what is no example.
    """

    examples: tuple[Example, ...]
    instruction: str = ""
    names: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(_example(number, one) for number, one in enumerate(self.examples, 1)))
        if not self.examples:
            raise ValueError("examples: expected at least one")
        written = "".join(one.input + one.output for one in self.examples)
        if len(written) > _LARGEST:
            raise ValueError(f"examples: expected at most {_LARGEST:,} characters in all, got {len(written):,}")
        if self.names is None:
            object.__setattr__(self, "names", ("输入", "输出") if _HAN.search(written) else ("Input", "Output"))

    @classmethod
    def read(cls, file: str | Path, instruction: str = "") -> FewShot:
        """Examples from a file: .jsonl of objects with input and output, or .tsv of both. Raises ValueError that names the file."""
        file = Path(file)
        if file.stat().st_size > 4 * _LARGEST:
            raise ValueError(f"{file}: expected at most {4 * _LARGEST:,} bytes of examples, got {file.stat().st_size:,}")
        found: list[Any] = []
        try:
            for line in filter(str.strip, file.read_text("utf-8").splitlines()):
                found.append(tuple(line.split("\t")) if file.suffix == ".tsv" else json.loads(line))
            return cls(tuple(found), instruction)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}: {error}; expected on each line {_SHAPE}") from None

    def prompt(self, text: str) -> str:
        """The examples and a text to answer, for a model that goes on with it."""
        begin, end = self._marks
        parts = [f"{begin}{one.input}\n{end}{one.output}" for one in self.examples]
        lead = [self.instruction] if self.instruction else []
        return "\n\n".join([*lead, *parts, f"{begin}{text}\n{end.rstrip()}"])

    def conversation(self, text: str) -> list[Message]:
        """The examples and a text to answer as the turns of a conversation, for a model with a chat template."""
        told = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for one in self.examples:
            told += [{"role": "user", "content": one.input}, {"role": "assistant", "content": one.output}]
        return [*told, {"role": "user", "content": text}]

    def sampling(self, sampling: Sampling | None = None, *, closed: bool = False, chat: bool = False) -> Sampling:
        """The sampling that ends an answer where the next example would begin.

        closed: only the examples' own outputs may be answered. chat: the answer is a turn of a conversation.
        """
        sampling = sampling or Sampling()
        if chat:
            return replace(sampling, constraint=OneOf(self._outputs)) if closed else sampling
        lead = self._marks[1][len(self._marks[1].rstrip()) :]  # the space before an answer is part of it
        constraint = sampling.constraint
        if closed:
            constraint = OneOf(tuple(lead + output for output in self._outputs))
        elif isinstance(constraint, OneOf):
            constraint = OneOf(tuple(lead + text for text in constraint.texts))
        return replace(sampling, stop=(*sampling.stop, self._end), constraint=constraint)

    def parse(self, text: str) -> Any:
        """The answer in a generated text; where all outputs are JSON objects or lists, its value, and None where it has none."""
        text = text.split(self._end)[0].strip()
        if not all(_container(output) for output in self._outputs):
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None

    @property
    def _marks(self) -> tuple[str, str]:
        """What stands before an input and an output."""
        assert self.names is not None
        colon = "：" if _HAN.search("".join(self.names)) else ": "
        return self.names[0] + colon, self.names[1] + colon

    @property
    def _outputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.output for one in self.examples))

    @property
    def _end(self) -> str:
        """What ends an answer: a new line, an empty one where outputs have several, or the next input."""
        fitting = (end for end in ("\n", "\n\n") if not any(end in output.strip() for output in self._outputs))
        return next(fitting, "\n\n" + self._marks[0].rstrip())


_SHAPE = '{"input": "…", "output": "…"}, or both with a tab between them in a .tsv file'


def _example(number: int, one: Any) -> Example:
    if isinstance(one, Mapping):
        one = (one.get("input"), one.get("output"))
    if isinstance(one, Sequence) and not isinstance(one, str) and len(one) == 2:
        told = ["" if part is None else part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in one]
        one = Example(*told) if one[0] is not None else None
    if not isinstance(one, Example) or not one.output.strip():
        raise ValueError(f"example {number} is none, as it lacks an input or an output")
    return one


def _container(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
