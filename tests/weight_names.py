"""The names under which each family and head writes its weights; run this file to freeze them anew."""

from pathlib import Path

from parity.cases import CASES, reference
from parity.test_judging import CASES as JUDGING
from parity.test_judging import pair

from triform import hub
from triform.nn import build

FROZEN = Path(__file__).parent / "hub" / "weight_names"
ALL = (*CASES, *JUDGING)


def names(case: str) -> list[str]:
    """The public names of a case's weights, in order."""
    found = hub.Checkpoint.open(pair(case)[2] if case in JUDGING else reference(case)[1])
    return sorted(hub.export_weights(build(found.spec, device="meta"), found.family))


def freeze() -> None:
    """Write every list."""
    FROZEN.mkdir(exist_ok=True)
    for case in ALL:
        (FROZEN / f"{case}.txt").write_text("\n".join(names(case)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    freeze()
