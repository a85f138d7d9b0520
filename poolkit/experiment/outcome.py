"""What an experiment found: verdicts, tables, charts; as data, and as a JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    TRUE = "true"
    FALSE = "false"
    DEPENDS = "depends"


class Status(StrEnum):
    """How an experiment ended."""

    DONE = "done"
    NOT_RUN = "not run"
    """It lacks something that it needs."""
    FAILED = "failed"
    """It ended with an error, so it says nothing about its claims."""


Holds: TypeAlias = bool | Mapping[str, bool]
"""Whether a claim holds: at all, or for each of several conditions by its name."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A claim and what was measured."""

    row: str
    claim: str
    verdict: Verdict
    condition: str
    """Of `depends`: what holds it true, and what false."""
    measured: str
    why: str


def judged(row: str, claim: str, holds: Holds, measured: str, why: str) -> Judgement:
    """Return the judgement that follows from a measurement.

    A claim that holds under each condition is true, under none of them false; otherwise it depends.
    """
    conditions = holds if isinstance(holds, Mapping) else {"": holds}
    if not conditions:
        raise ValueError(f"row {row} is judged by no condition at all")
    verdict = Verdict.DEPENDS
    if len(set(conditions.values())) == 1:
        verdict = Verdict.TRUE if next(iter(conditions.values())) else Verdict.FALSE
    condition = ""
    if verdict is Verdict.DEPENDS:
        parts = [
            f"{word} {', '.join(name for name, held in conditions.items() if held is value)}"
            for word, value in (("true for", True), ("false for", False))
        ]
        condition = "; ".join(parts)
    return Judgement(
        row=row, claim=claim, verdict=verdict, condition=condition, measured=measured, why=why
    )


def by_claim(judgements: Iterable[Judgement]) -> list[list[Judgement]]:
    """Return judgements in order, those of several rows on one claim together."""
    groups = groupby(judgements, lambda each: (each.claim, each.measured, each.condition))
    return [list(group) for _, group in groups]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text, each as long as the headings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars, or lines over an axis of numbers."""

    kind: Literal["bars", "lines"]
    title: str
    unit: str
    """Of the values, such as `ms`."""
    points: tuple[tuple[str, float | str, float], ...]
    """Series, place on the x axis (bars: the bar's name), value."""
    x_title: str = ""
    is_log: bool = False
    """The values are on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one experiment found."""

    name: str
    chapter: str
    question: str
    status: Status
    reason: str = ""
    """Why it was not run, or what its error was."""
    took_s: float = 0.0
    conditions: Mapping[str, int | float | str] = field(default_factory=dict)
    judgements: tuple[Judgement, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcomes of one command, and where they were measured."""

    command: str
    date: str
    machine: str
    versions: Mapping[str, str]
    distance: str
    """Between the experiments and their database."""
    outcomes: tuple[Outcome, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return asdict(self)


def report_from_json(document: Mapping[str, Any]) -> Report:
    """Return the report of a JSON document that `Report.as_json` made."""
    outcomes = tuple(
        Outcome(
            **{
                **found,
                "status": Status(found["status"]),
                "judgements": tuple(
                    Judgement(**{**each, "verdict": Verdict(each["verdict"])})
                    for each in found["judgements"]
                ),
                "tables": tuple(
                    Table(
                        title=each["title"],
                        columns=tuple(each["columns"]),
                        rows=tuple(map(tuple, each["rows"])),
                    )
                    for each in found["tables"]
                ),
                "charts": tuple(
                    Chart(**{**each, "points": tuple(map(tuple, each["points"]))})
                    for each in found["charts"]
                ),
                "notes": tuple(found["notes"]),
            }
        )
        for found in document["outcomes"]
    )
    return Report(**{**document, "outcomes": outcomes})
