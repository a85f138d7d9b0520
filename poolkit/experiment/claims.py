"""The page of all claims: a row for each, with its verdict, its number and what shows it."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError
from poolkit.experiment.experiment import experiments_folder
from poolkit.experiment.outcome import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from poolkit.experiment.experiment import Experiment
    from poolkit.experiment.outcome import Judgement, Report

FILE = "claims.toml"


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
    """What is to be said of it, in a sentence."""


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
        raise ConfigurationError(
            f"no experiment judged, and {FILE} does not explain, the rows {', '.join(missing)}"
        )
    lines = [_HEAD, *_facts(report), "", _summary(judged, len(claims.rows)), ""]
    for number, text in enumerate(claims.texts):
        lines += [f"## Text {number}: {text.about}", "", *_TABLE_HEAD]
        for row in claims.rows:
            if not row.startswith(f"{number}."):
                continue
            for name, judgement in judged.get(row, []):
                path = experiments[name].path
                file = f"{path.parent.name}/{path.name}"
                verdict = f"**{judgement.verdict}**"
                verdict += f" ({_plain(judgement.condition)})" if judgement.condition else ""
                lines.append(
                    _line(
                        row,
                        _plain(judgement.claim),
                        verdict,
                        _plain(judgement.measured),
                        f"`poolkit experiment {name}` (experiments/{file})",
                    )
                )
            if row not in judged:
                pointer = claims.pointers[row]
                lines.append(_line(row, pointer.claim, "", pointer.answer, pointer.shown_by))
        lines.append("")
    return "\n".join(lines)


_HEAD = """\
# Claims about connection pooling

Five typical texts about connection pooling make the claims below. Each was run and judged by
`poolkit experiment`, except where the last column names another command, a test or a page.
This page is written by `poolkit experiment --all --claims docs/claims.md`.
"""
_TABLE_HEAD = ("| row | claim | verdict | measured | shown by |", "|---|---|---|---|---|")


def _facts(report: Report) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return [
        f"Command: `{report.command}`, {report.date}. Distance to the database: {report.distance}.",
        f"Machine: {report.machine}. Versions: {versions}.",
    ]


def _summary(judged: Mapping[str, list[tuple[str, Judgement]]], claims: int) -> str:
    """Return how many claims have which verdict; one with two different ones depends."""
    count: Counter[Verdict] = Counter()
    for found in judged.values():
        verdicts = {judgement.verdict for _, judgement in found}
        count[verdicts.pop() if len(verdicts) == 1 else Verdict.DEPENDS] += 1
    return (
        f"Of {claims} claims {count[Verdict.TRUE]} are true and {count[Verdict.FALSE]} false; "
        f"{count[Verdict.DEPENDS]} depend on conditions. {claims - count.total()} are advice, "
        "settings or summaries, and have no verdict of their own."
    )


def _plain(text: str) -> str:
    """Return a text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split())).replace(
        "<", "&lt;"
    )


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
