"""Verdicts as GitHub's annotations.

The commands are those of GitHub Docs, "Workflow commands for GitHub Actions"; how their data and
properties are escaped is said by GitHub's toolkit (actions/toolkit, packages/core/src/command.ts).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.thresholds.verdict import unmet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.thresholds.verdict import Verdict

MOST = 10
"""Errors of one step that GitHub shows (actions/toolkit, docs/problem-matchers.md, Limitations)."""


def github_annotations(verdicts: Iterable[Verdict]) -> list[str]:
    """Return an error for every threshold that failed or is not known, each one line to print.

    Those beyond the `MOST` that GitHub shows are together in the last.
    """
    found = unmet(verdicts)
    if len(found) <= MOST:
        return [_error(_title(verdict), verdict.words) for verdict in found]
    first, rest = found[: MOST - 1], found[MOST - 1 :]
    title = f"{len(rest)} more thresholds"
    together = _error(title, "\n".join(verdict.words for verdict in rest))
    return [*github_annotations(first), together]


def _title(verdict: Verdict) -> str:
    state = "Threshold failed" if verdict.status == "failed" else "Threshold not known"
    return ": ".join(part for part in (state, verdict.place, verdict.threshold.metric) if part)


def _error(title: str, words: str) -> str:
    return f"::error title={_property(title)}::{_data(words)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
