"""The grammar of a threshold.

`[TARGET[,TARGET]:] METRIC[{name="NAME"}|{tag="TAG"}] OP VALUE[UNIT] [abort [after TIME]]`
"""

from __future__ import annotations

import math
import operator
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from poolkit.errors import ConfigurationError
from poolkit.thresholds.metrics import METRICS, Metric, metric, plain, shown
from poolkit.thresholds.selector import Selector, split_selector

if TYPE_CHECKING:
    from collections.abc import Callable

Operator: TypeAlias = Literal["<", "<=", ">", ">=", "=="]

COMPARE: dict[Operator, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
_MEANT: dict[str, str] = {
    "=": "==",
    "===": "==",
    "=<": "<=",
    "=>": ">=",
    "≤": "<=",
    "≥": ">=",
    "under": "<",
    "below": "<",
    "over": ">",
    "above": ">",
}
_TARGET = re.compile(r"[A-Za-z0-9][\w.@+-]*")
_SIGNS = re.compile(r"[<>=!~≤≥≠]+")
_VALUE = re.compile(
    r"([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?|nan|inf(?:inity)?)(.*)",
    re.ASCII | re.IGNORECASE,
)
_ABORT = re.compile(r"(?<![\w.-])abort(?![\w.-])")
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h)", re.ASCII)
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Parts(NamedTuple):
    """The fields of a threshold, in the units of `Metric` and in seconds."""

    targets: tuple[str, ...]
    metric: str
    selector: Selector | None
    operator: Operator
    limit: float
    abort: bool
    delay_s: float


def parts(text: str) -> Parts:
    """Return the parts of a threshold's text.

    Raises:
        ConfigurationError: the text is not a threshold; the message names the mistake.
    """
    # First, because a name may have every other sign.
    before, selector, behind_it = split_selector(text)
    if selector is not None and (not before.strip() or _SIGNS.search(before)):
        raise ConfigurationError(
            f"{selector} must follow the metric, as in 'http.p95{selector} < 200'"
        )
    names, colon, rest = " ".join(f"{before} {behind_it}".split()).rpartition(":")
    expression, *behind = _ABORT.split(rest, maxsplit=1)
    abort, after = bool(behind), "".join(behind).strip()
    of, op, value = _expression(expression.strip())
    limit = _limit(value, of, op)
    if selector is not None and not of.of_requests:
        raise ConfigurationError(
            f"{of.name} is not known by the {selector.key} of a request, so leave {selector} out"
        )
    if abort and of.at_end:
        raise ConfigurationError(
            f"{of.name} is known only when the run has ended, so it cannot abort it"
        )
    if abort and of.grows and op in (">", ">="):
        raise ConfigurationError(
            f"{of.name} grows until the end, so {op} is decided only there and cannot abort"
        )
    targets = dict.fromkeys(name.strip() for name in names.split(",")) if colon else {}
    for name in targets:
        if not _TARGET.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is not a target's name; wanted as in 'lambda,web: http.p95 < 200'"
            )
    return Parts(tuple(targets), of.name, selector, op, limit, abort, _delay_s(after))


def _delay_s(after: str) -> float:
    """Return the seconds of the text behind `abort`; 0 without one."""
    if not after:
        return 0.0
    word, _, time = after.partition(" ")
    if word != "after":
        raise ConfigurationError(
            f"{after!r} is not expected after abort; wanted as in 'abort after 10s'"
        )
    if not time:
        raise ConfigurationError(
            "the time is missing after 'abort after'; wanted as in 'abort after 10s'"
        )
    delay_s = duration_s(time)
    if delay_s is None:
        raise ConfigurationError(
            f"{time!r} is not a time; wanted a number and ms, s, m or h, as in 10s or 1m30s"
        )
    return delay_s


def duration_s(text: str) -> float | None:
    """Return the seconds of a text such as "30s", "5m" or "1m30s"; None if it is none."""
    bare = "".join(text.split())
    if not bare or _TIME.sub("", bare):
        return None
    return math.fsum(float(number) * SECONDS[unit] for number, unit in _TIME.findall(bare))


def _expression(text: str) -> tuple[Metric, Operator, str]:
    """Return the metric, the operator and the text of the limit."""
    if found := _SIGNS.search(text):
        name, sign, value = text[: found.start()].strip(), found[0], text[found.end() :].strip()
    else:
        name, _, rest = text.partition(" ")
        if not name:
            raise ConfigurationError("nothing to check; wanted as in 'http.p95 < 200'")
        metric(name)
        sign, value = rest.partition(" ")[0], ""
        if not sign or sign[0].isdigit():
            raise ConfigurationError(
                f"an operator is missing after {name}; in a shell, quote it: '{name} < ...'"
            )
    if not name:
        raise ConfigurationError(
            f"the metric is missing before {sign}; there are: {', '.join(METRICS)}"
        )
    of = metric(name)
    if sign not in COMPARE:
        meant = _MEANT.get(sign.lower())
        hint = f"did you mean {meant}?" if meant else f"there are: {' '.join(COMPARE)}"
        raise ConfigurationError(f"{sign!r} is not an operator; {hint}")
    if not value:
        raise ConfigurationError(f"the limit is missing after {sign}")
    return of, sign, value


def _limit(text: str, of: Metric, op: Operator) -> float:
    """Return a limit in the unit of its metric's kind; refuse one that can never be held."""
    found = _VALUE.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"{text!r} is not a number")
    sign, digits, unit = found[1], found[2], found[3].strip()
    if digits[0] in "nNiI":
        raise ConfigurationError(f"{digits} is not a limit")
    number, factor = Decimal(digits), of.units.get(unit)
    if unit and factor is None:
        is_time = unit.partition(" ")[0] in ("after", "for")
        wanted = f"wanted {', '.join(of.units)}" if of.units else "wanted a number without a unit"
        raise ConfigurationError(
            f"{unit!r} must follow abort, as in 'abort after 10s'"
            if is_time
            else f"{unit!r} is not a unit of {of.name} ({of.meaning}); {wanted}"
        )
    # 0.5 could be half of all or half a percent.
    if factor is None and of.kind == "share" and number:
        either = f" or {plain(100 * number)}%" if number <= 1 else ""
        raise ConfigurationError(f"{of.name} is a share, so write {number}%{either}")
    limit = float(number * (factor or 1))
    if not math.isfinite(limit):
        raise ConfigurationError(f"{digits} is too large for a limit")
    if sign == "-" and limit:
        raise ConfigurationError(f"no figure is below 0, so {text} is not a limit")
    if op == "<" and limit == 0:
        raise ConfigurationError("no figure is below 0; did you mean == 0?")
    if of.kind == "share" and (limit > 1 or (limit == 1 and op == ">")):
        outcome = "always" if op.startswith("<") else "never"
        raise ConfigurationError(
            f"a share is at most 100%, so {op} {shown(limit, of)} {outcome} holds"
        )
    # Equality with a figure that has decimals is chance.
    if op == "==" and limit and not (of.kind == "count" and limit.is_integer()):
        raise ConfigurationError(
            f"{of.name} is a whole number and never {shown(limit, of)}"
            if of.kind == "count"
            else f"{of.name} is hardly ever exactly {shown(limit, of)}; write <= or >="
        )
    return limit
