"""The page of all claims: each with its verdict, its number and what shows it.

A list, not a table: a claim, its numbers and its command do not fit side by side on a phone.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from poolkit.errors import ConfigurationError
from poolkit.experiment.experiment import experiments_folder
from poolkit.experiment.outcome import Status, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from poolkit.experiment.experiment import Experiment
    from poolkit.experiment.outcome import Judgement, Report

FILE = "claims.toml"
_Judgements: TypeAlias = "Mapping[str, list[tuple[str, Judgement]]]"
"""By row, each experiment that judges it, and how."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One of the texts whose claims are judged."""

    about: str
    rows: int
    """The number of its claims."""


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """A claim that no experiment judges: an advice, a pattern, or what another command shows."""

    claim: str
    shown_by: str
    """A command, a test, or a page of the documentation."""
    answer: str
    """The answer to it, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The texts and the claims without an experiment."""

    texts: tuple[Text, ...]
    pointers: Mapping[str, Pointer]

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row, such as `4.22`."""
        return tuple(
            f"{number}.{row}"
            for number, text in enumerate(self.texts)
            for row in range(1, text.rows + 1)
        )


def read_claims(folder: Path | None = None) -> Claims:
    """Return the texts, and the claims that no experiment judges.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    path = (folder or experiments_folder()) / FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        return Claims(
            texts=tuple(Text(**text) for text in document["texts"]),
            pointers={row: Pointer(**found) for row, found in document["rows"].items()},
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def claims_page(report: Report, experiments: Mapping[str, Experiment]) -> str:
    """Return the page, in Markdown.

    Args:
        report: of a run of every experiment.
        experiments: by name.

    Raises:
        ConfigurationError: a row has neither a verdict nor a pointer.
    """
    claims = read_claims()
    judged: dict[str, list[tuple[str, Judgement]]] = {}
    for outcome in report.outcomes:
        for judgement in outcome.judgements:
            judged.setdefault(judgement.row, []).append((outcome.name, judgement))
    missing = [row for row in claims.rows if row not in judged and row not in claims.pointers]
    if missing:
        silent = [each.name for each in report.outcomes if each.status is not Status.DONE]
        raise ConfigurationError(
            f"no experiment judged, and {FILE} does not explain, the rows {', '.join(missing)}"
            + (f"; not run, or failed: {', '.join(silent)}" if silent else "")
        )
    lines = [_HEAD, *_overview(claims, judged), *_facts(report)]
    for number, text in enumerate(claims.texts):
        lines += ["", f"## Text {number}: {text.about}", ""]
        entries: list[tuple[list[str], _Entry]] = []
        for row in claims.rows:
            if not row.startswith(f"{number}."):
                continue
            entry = (
                _measured(judged[row], experiments)
                if row in judged
                else _said(claims.pointers[row])
            )
            # A text says some things twice, one after the other.
            if entries and entries[-1][1] == entry:
                entries[-1][0].append(row)
            else:
                entries.append(([row], entry))
        for rows, entry in entries:
            anchors = "".join(f'<a id="{row}"></a>' for row in rows)
            lines.append(f"- {anchors}**{', '.join(rows)} {entry.verdict}:** {entry.claim}")
            lines += [f"    - {line}" for line in entry.lines]
    return "\n".join(lines) + "\n"


_HEAD = """\
# Claims about connection pooling

Five typical texts about connection pooling make the claims below. `poolkit experiment` runs each
claim on a real PostgreSQL, and computes from the measurement whether it is **true** or **false**.
**Depends** means that it is true under some conditions and false under others. Advice, settings and
summaries ("advice" in the table) have no verdict: an answer stands there, and what shows it.

A claim's number is its text and its place in the text: `4.22` is claim 22 of text 4. To check a
claim, read the experiment, which is one short file, and run its command. It also prints the mechanism
behind the numbers. [Check claims about pooling](experiments.md) shows how.
"""


def _overview(claims: Claims, judged: _Judgements) -> list[str]:
    """Return a table: how many claims of each text have which verdict."""
    lines = [
        "| text | claims | true | false | depends | advice |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    total: Counter[str] = Counter()
    for number in range(len(claims.texts)):
        rows = [row for row in claims.rows if row.startswith(f"{number}.")]
        count = Counter(_verdict(judged[row]) if row in judged else "" for row in rows)
        total += count
        lines.append(f"| {number} | {_counts(count)} |")
    return [*lines, f"| all | {_counts(total)} |", ""]


def _counts(count: Counter[str]) -> str:
    return " | ".join(map(str, (count.total(), *(count[each] for each in (*Verdict, "")))))


def _facts(report: Report) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return [
        f"- Written by `{report.command}`, {report.date}",
        f"- Machine: {report.machine}",
        f"- Versions: {versions}",
        f"- Distance to the database: {report.distance}",
    ]


def _verdict(found: Iterable[tuple[str, Judgement]]) -> Verdict:
    """Return the verdict on a claim; one with two different ones depends."""
    verdicts = {judgement.verdict for _, judgement in found}
    return verdicts.pop() if len(verdicts) == 1 else Verdict.DEPENDS


class _Entry(NamedTuple):
    """What the page says of a claim."""

    verdict: str
    claim: str
    lines: list[str]


def _said(pointer: Pointer) -> _Entry:
    return _Entry("no verdict", pointer.claim, [pointer.answer, f"Shown by {pointer.shown_by}"])


def _measured(
    found: Sequence[tuple[str, Judgement]], experiments: Mapping[str, Experiment]
) -> _Entry:
    """Return what each experiment says of a claim."""
    (_, first), *_ = found
    lines = []
    for name, judgement in found:
        if judgement.claim != first.claim:
            lines.append(f"In other words: {_plain(judgement.claim)}")
        if judgement.condition:
            lines.append(f"It is {_plain(judgement.condition)}")
        elif len(found) > 1:
            lines.append(f"It is {judgement.verdict} in the next experiment")
        folder = experiments[name].path.parent.name
        lines += [
            f"Measured: {_plain(judgement.measured)}",
            f"Shown by `poolkit experiment {name}` in `experiments/{folder}`",
        ]
    return _Entry(_verdict(found), _plain(first.claim), lines)


def _plain(text: str) -> str:
    """Return a text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split())).replace(
        "<", "&lt;"
    )
