"""The rewards of answers, by a model of what people prefer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triform import config
from triform.data.conversations import Messages
from triform.objectives.reward_model import reward_row
from triform.text import Tokenizer
from triform.text.turns import Tools

from .forms import Module, expect
from .judging import longest_row, outputs

_LONGEST = 4096  # tokens, where nothing else says how many


def rewards(
    model: Module,
    tokenizer: Tokenizer,
    answers: Sequence[tuple[Messages, Messages]],
    *,
    tools: Sequence[Tools] | None = None,
    length: int | None = None,
    batch_size: int = 32,
) -> Tensor:
    """The reward of each answer, (answers,), with a model that was trained as a `RewardModel`.

    answers: the messages of a prompt and those of its answer. tools: what each prompt tells of, if any do. length: tokens of prompt
    and answer, as in training (`hub.task` has it); what is longer loses the prompt's beginning or the answer's end.
    Raises ValueError for a model without a Classify head of one label.
    """
    net = expect(model, "classify")
    head = net.config.head
    assert isinstance(head, config.Classify)
    if head.labels != 1:
        raise ValueError(f"expected a reward model, whose Classify head has 1 label, got one of {head.labels}")
    limit = longest_row(net, tokenizer, length) or _LONGEST
    told = [None] * len(answers) if tools is None else tools
    found = [reward_row(tokenizer, *answer, limit, tools=each) for answer, each in zip(answers, told, strict=True)]
    rows, segments = [row for row, _ in found], [parts for _, parts in found]
    out = torch.empty(len(rows))
    for numbers, scores in outputs(net, tokenizer, rows, batch_size, segments):
        out[torch.tensor(numbers)] = scores[:, 0].float().cpu()
    return out
