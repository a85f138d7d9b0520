"""A threshold, and which of several apply to a target."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from poolkit.errors import ConfigurationError
from poolkit.thresholds.metrics import METRICS, plain, shown
from poolkit.thresholds.parse import parts
from poolkit.thresholds.selector import figure_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from poolkit.thresholds.metrics import Metric
    from poolkit.thresholds.parse import Operator
    from poolkit.thresholds.selector import Selector

KEY = "thresholds"
"""The key of `[tool.poolkit]`."""
SOURCE = f"pyproject.toml: [tool.poolkit] {KEY}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A limit for one metric; two with the same meaning are equal, whatever their texts."""

    text: str = field(compare=False)
    """As it was written."""
    targets: tuple[str, ...]
    """The targets it is for; empty means all."""
    metric: str
    operator: Operator
    limit: float
    """In ms, as a share from 0 to 1, per second, or a plain number; see `Metric`."""
    abort: bool = False
    selector: Selector | None = None
    """The requests that it is about; None means all."""
    delay_s: float = 0.0
    """Seconds of load before which it does not abort."""
    except_for: tuple[str, ...] = ()
    """Targets that have another threshold for this metric, if it is for all others."""

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Return the threshold of a text such as `lambda: http.p95 < 0.2s abort after 10s`.

        Raises:
            ConfigurationError: the text is no threshold; one line names the mistake.
        """
        try:
            return cls(text=text, **parts(text)._asdict())
        except ConfigurationError as error:
            raise ConfigurationError(f"threshold {text!r}: {error}") from None

    @property
    def measure(self) -> Metric:
        """The metric that it limits."""
        return METRICS[self.metric]

    @property
    def key(self) -> str:
        """The name of its figure: the metric, with the name or tag of the requests."""
        return figure_key(self.metric, self.selector)

    @property
    def wanted(self) -> str:
        """The limit as text, such as "< 200 ms"."""
        return f"{self.operator} {shown(self.limit, self.measure, beside=self.limit)}"

    @property
    def expression(self) -> str:
        """Figure and limit as text, such as "http.p95 < 200 ms"."""
        return f"{self.key} {self.wanted}"

    def applies_to(self, target: str) -> bool:
        """Return whether it is for a target."""
        if self.targets:
            return target in self.targets
        return target not in self.except_for

    def __str__(self) -> str:
        """Return a text from which `parse` makes the same threshold, but without `except_for`."""
        targets = f"{','.join(self.targets)}: " if self.targets else ""
        after = f" after {plain(Decimal(repr(self.delay_s)))}s" if self.delay_s else ""
        return f"{targets}{self.expression}{f' abort{after}' if self.abort else ''}"


def thresholds_of(
    table: Mapping[str, Any], given: Sequence[str] = (), *, source: str = SOURCE
) -> tuple[Threshold, ...]:
    """Return the thresholds of `[tool.poolkit]` and those of `--threshold`, in the order of `METRICS`.

    For one target and metric (and name or tag of the requests), those of the command line replace the table's; within either,
    those for named targets replace those for all. Where two are left, both must hold.

    Args:
        table: `[tool.poolkit]`.
        given: the texts of the command line.
        source: how an error names the place of the table's thresholds.

    Raises:
        ConfigurationError: a text is no threshold; the line names the place and the mistake.
    """
    texts = table.get(KEY, [])
    example = 'such as "http.p95 < 200"'
    if not isinstance(texts, list):
        raise ConfigurationError(f"{source} must be a list of strings {example}, not {texts!r}")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ConfigurationError(
                f"{source}, number {number}, must be a string {example}, not {text!r}"
            )
    found: list[Threshold] = []
    for placed in (
        [("--threshold: ", text) for text in given],
        [(f"{source}, number {number}: ", text) for number, text in enumerate(texts, 1)],
    ):
        group = []
        for place, text in placed:
            try:
                group.append(Threshold.parse(text))
            except ConfigurationError as error:
                raise ConfigurationError(f"{place}{error}") from None
        for has_targets in (True, False):
            layer = [each for each in group if bool(each.targets) is has_targets]
            left = [_without(threshold, found) for threshold in layer]
            found += [threshold for threshold in left if threshold is not None]
    order = list(METRICS)
    return tuple(sorted(dict.fromkeys(found), key=lambda each: order.index(each.metric)))


def _without(threshold: Threshold, better: Iterable[Threshold]) -> Threshold | None:
    """Return a threshold without the targets that better ones cover; None if no target is left."""
    same = [other for other in better if other.key == threshold.key]
    if any(not other.targets for other in same):
        return None
    taken = dict.fromkeys(name for other in same for name in other.targets)
    if not threshold.targets:
        return dataclasses.replace(threshold, except_for=tuple(taken))
    left = tuple(name for name in threshold.targets if name not in taken)
    return dataclasses.replace(threshold, targets=left) if left else None


def check_targets(thresholds: Iterable[Threshold], known: Collection[str]) -> None:
    """Refuse a threshold for an unknown target.

    Raises:
        ConfigurationError: the line names the threshold, the target and the nearest name.
    """
    for threshold in thresholds:
        for name in threshold.targets:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                names = ", ".join(known) or "none"
                hint = f"did you mean {close[0]}?" if close else f"there are: {names}"
                raise ConfigurationError(
                    f"threshold {threshold.text!r}: there is no target {name}; {hint}"
                )


def check_without_tags(thresholds: Iterable[Threshold]) -> None:
    """Refuse a threshold about a tag, where the tags of requests are not recorded.

    Raises:
        ConfigurationError: the line names the threshold, and what to write instead.
    """
    for threshold in thresholds:
        if threshold.selector is not None and threshold.selector.key == "tag":
            raise ConfigurationError(
                f"threshold {threshold.text!r}: only a Locust run records the tags of requests; use "
                'their name, as in {name="GET /articles"}'
            )
