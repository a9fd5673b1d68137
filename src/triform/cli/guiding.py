"""What options of `triform generate` say of the text's form, of proposals and of examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import open_model

if TYPE_CHECKING:
    from triform.generate.constrained import Constraint
    from triform.generate.requests import Speculation
    from triform.generate.speculative import Draft, Lookup


def constraint_of(schema: str | None, regex: str | None, choices: Sequence[str]) -> Constraint | None:
    """The one constraint that is asked for; a schema is JSON, or the name of a file of it."""
    from triform.generate import JsonSchema, OneOf, Regex

    if (schema is not None) + (regex is not None) + bool(choices) > 1:
        raise ValueError("expected at most one of --json-schema, --regex and --choice")
    if schema is not None:
        return JsonSchema(schema if schema.lstrip().startswith("{") else Path(schema).read_text("utf-8"))
    if regex is not None:
        return Regex(regex)
    return OneOf(tuple(choices)) if choices else None


def proposals_of(draft: str | None, lookup: int | None) -> Draft | Lookup | None:
    """Who proposes tokens: a model by its name, or a look-up of so many tokens."""
    from triform.generate.speculative import Draft, Lookup

    if draft is not None and lookup is not None:
        raise ValueError("--draft: expected no --lookup beside it; choose one of them")
    if draft is not None:
        return Draft(*open_model(draft, "auto"))
    return None if lookup is None else Lookup(lookup)


def rate_of(found: Sequence[Any]) -> str:
    """A line that says how many proposals were taken."""
    told: list[Speculation] = [one.speculation for one in found if one.speculation is not None]
    proposed, accepted = sum(one.proposed for one in told), sum(one.accepted for one in told)
    tokens = sum(len(one.ids) for one in found) / max(1, sum(one.passes for one in told))
    return f"{accepted:,} of {proposed:,} proposed tokens were taken ({accepted / max(1, proposed):.0%}); {tokens:.1f} tokens a pass"
