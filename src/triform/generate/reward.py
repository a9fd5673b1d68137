"""The rewards of answers, by a model of what people prefer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triform import config
from triform.data.conversations import Messages
from triform.objectives.reward_model import reward_row
from triform.text import Tokenizer

from .forms import Module, expect
from .judging import longest_row, outputs

_LONGEST = 4096  # tokens, where nothing else says how many


def rewards(
    model: Module, tokenizer: Tokenizer, answers: Sequence[tuple[Messages, Messages]], *, length: int | None = None, batch_size: int = 32
) -> Tensor:
    """The reward of each answer, (answers,), with a model that was trained as a `RewardModel`.

    answers: the messages of a prompt and those of its answer. length: tokens of both, as in training (`hub.task` has it); what is
    longer loses the prompt's beginning or the answer's end. Raises ValueError for a model without a Classify head of one label.
    """
    net = expect(model, "classify")
    head = net.config.head
    assert isinstance(head, config.Classify)
    if head.labels != 1:
        raise ValueError(f"expected a reward model, whose Classify head has 1 label, got one of {head.labels}")
    limit = longest_row(net, tokenizer, length) or _LONGEST
    rows, segments = zip(*(reward_row(tokenizer, *answer, limit) for answer in answers), strict=True)
    found = torch.empty(len(rows))
    for numbers, scores in outputs(net, tokenizer, rows, batch_size, segments):
        found[torch.tensor(numbers)] = scores[:, 0].float().cpu()
    return found
