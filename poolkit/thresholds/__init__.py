"""Thresholds: what a load test must hold to pass, in the manner of k6.

    http.p95 < 200
    http.errors < 0.1%
    http.p95{name="GET /articles"} < 100
    lambda,web: db.connections.max < 80 abort after 10s

They stand in `[tool.poolkit] thresholds` of pyproject.toml or behind `--threshold`. This package parses
them (`parse`, `threshold`), checks them against figures (`verdict`) and prints the verdicts (`outputs`).
It measures nothing: the figures come from `poolkit.loadtest.figures`. See docs/thresholds.md.
"""

from __future__ import annotations

from poolkit.thresholds.metrics import METRICS, Metric
from poolkit.thresholds.outputs import (
    github_annotations,
    junit,
    lines,
    plain_lines,
    takes_marks,
)
from poolkit.thresholds.threshold import (
    Threshold,
    check_targets,
    check_without_tags,
    thresholds_of,
)
from poolkit.thresholds.verdict import (
    Verdict,
    check,
    check_all,
    should_abort,
    unmet,
    with_unseen,
)

__all__ = [
    "METRICS",
    "Metric",
    "Threshold",
    "Verdict",
    "check",
    "check_all",
    "check_targets",
    "check_without_tags",
    "github_annotations",
    "junit",
    "lines",
    "plain_lines",
    "should_abort",
    "takes_marks",
    "thresholds_of",
    "unmet",
    "with_unseen",
]
