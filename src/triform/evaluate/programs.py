"""Programs that a model writes, judged by running them: HumanEval (Chen et al. 2021)."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from .files import Line, found_in, read, records, some
from .sandbox import check_platform, run_programs
from .statistics import Metric
from .task import Judged, Result, Settings, fingerprint
from .writing import written

_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # the paper's
_TOKENS = 512
_TEMPERATURE = 0.8  # of several samples, as in the paper for pass@100
_AT = (1, 10, 100)
_BLOCK = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_REQUEST = "Complete this Python function. Answer with the whole function in a single block of code.\n\n```python\n{prompt}\n```"


class Problem(NamedTuple):
    """A function's head and what it should do, the test that calls it, and its name."""

    name: str
    prompt: str
    test: str
    entry_point: str


def check_allowed(settings: Settings) -> None:
    """Raise ValueError where programs that a model wrote may not or cannot be run."""
    if not settings.allow_code:
        raise ValueError("humaneval runs programs that the model wrote, with limits, on this machine; allow it by --allow-code")
    check_platform()


def pass_at(samples: int, passed: int, k: int) -> float:
    """The probability that at least one of k samples passes, by n samples of which c passed, without bias: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, equation 1)."""
    if k > samples:
        raise ValueError(f"pass@{k}: expected at least {k} samples, got {samples}")
    failing = 1.0
    for number in range(samples - passed + 1, samples + 1):
        failing *= max(0, number - k) / number
    return 1 - failing


def humaneval(judged: Judged, place: Path, settings: Settings) -> Result:
    """HumanEval's file (.jsonl, also .gz) and others in its format: pass@1, and pass@10 and pass@100 where there are so many samples.

    One sample a problem is written greedily; several at a temperature of 0.8 and top-p 0.95 where the settings do not say. Each is
    run in a process of its own with limits (`sandbox`), and only where `allow_code` is set.
    """
    check_allowed(settings)
    files = found_in(place, "HumanEval.jsonl*", "*.jsonl", "*.jsonl.gz")
    problems, bad = read(chain.from_iterable(map(records, files)), _problem, skip_bad=settings.skip_bad, limit=settings.limit)
    some(problems, place)
    temperature = settings.temperature
    if temperature is None:
        temperature = 0.0 if settings.samples == 1 else _TEMPERATURE
    if settings.samples > 1 and temperature == 0:
        raise ValueError("temperature: expected more than 0 for several samples, as they would all be the same")
    asked = [one for one in problems for _ in range(settings.samples)]
    show = settings.on_progress
    first = replace(settings, on_progress=None if show is None else lambda done, total: show(done, 2 * total))
    prompts = [_REQUEST.format(prompt=one.prompt.rstrip()) if settings.chat else one.prompt for one in asked]
    stop = () if settings.chat else _STOP
    texts = written(judged, prompts, first, most=_TOKENS, stop=stop, temperature=temperature)
    whole = [program(one, text, chat=settings.chat) for one, text in zip(asked, texts, strict=True)]
    on_program = None if show is None else lambda done: show(len(asked) + done, 2 * len(asked))
    outcomes = run_programs(whole, on_program=on_program)
    items = [
        {"problem": one.name, "written": text, "right": outcome.passed, "told": outcome.told}
        for one, text, outcome in zip(asked, texts, outcomes, strict=True)
    ]
    size = settings.samples
    passed = [sum(outcome.passed for outcome in outcomes[at : at + size]) for at in range(0, len(outcomes), size)]
    setting: dict[str, Any] = {"samples": size, "temperature": temperature, "max_new_tokens": settings.max_new_tokens or _TOKENS}
    setting["chat"] = settings.chat
    return Result("humaneval", place.stem, _metrics(passed, size), setting, fingerprint(files), bad=bad, items=items)


def _metrics(passed: Sequence[int], samples: int) -> list[Metric]:
    if samples == 1:
        return [Metric.right("pass@1", [one == 1 for one in passed])]
    return [Metric.average(f"pass@{k}", [pass_at(samples, one, k) for one in passed]) for k in _AT if k <= samples]


def _problem(line: Line) -> Problem:
    entry_point = line.text("entry_point")
    if not entry_point.isidentifier():
        raise line.error(f"expected the name of a function in 'entry_point', got {entry_point[:40]!r}")
    return Problem(line.text("task_id"), line.text("prompt"), line.text("test"), entry_point)


def program(problem: Problem, text: str, *, chat: bool = False) -> str:
    """What is run: the prompt, what the model wrote, the test, and its call.

    chat: the text is an answer, of which the first block of code counts, or the first that has the function; the whole function
    takes the place of the prompt's, whose imports and helpers stay.
    """
    if chat:
        blocks = _BLOCK.findall(text) or [text]
        head = f"def {problem.entry_point}("
        text = next((block for block in blocks if head in block), blocks[0])
        if head in text:
            text = f"{'' if _parses(problem.prompt) else '    pass'}\n\n{text}"
    return f"{problem.prompt}{text}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"


def _parses(text: str) -> bool:
    """Whether a prompt is a whole function as it is, by its docstring."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
