"""The grammar of a threshold: `[TARGET[,TARGET]:] METRIC OP VALUE[UNIT] [abort [after TIME]]`."""

from __future__ import annotations

import math
import operator
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn, TypeAlias

from poolkit.errors import ConfigurationError
from poolkit.thresholds.metrics import METRICS, Metric, metric, plain, shown

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
_TARGET = re.compile(r"[A-Za-z0-9][\w.@-]*")
_SIGNS = re.compile(r"[<>=!~≤≥≠]+")
_VALUE = re.compile(
    r"([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d{1,3})?|nan|inf(?:inity)?)(.*)",
    re.ASCII | re.IGNORECASE,
)
_ABORT = re.compile(r"(?<![\w.-])abort(?![\w.-])")
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Parts(NamedTuple):
    """The fields of a threshold, in the units of `Metric` and in seconds."""

    targets: tuple[str, ...]
    metric: str
    operator: Operator
    limit: float
    abort: bool
    delay_s: float


def parts(text: str) -> Parts:
    """Return the parts of a threshold's text.

    Raises:
        ConfigurationError: the text is no threshold; one line names the text and the mistake.
    """
    names, colon, rest = " ".join(text.split()).rpartition(":")
    expression, abort, after = _split(_ABORT, rest)
    targets = dict.fromkeys(name.strip() for name in names.split(",")) if colon else {}
    try:
        of, op, value = _expression(expression)
        limit = _limit(value, of)
        _refuse_senseless(of, op, limit)
        if abort and of.at_end:
            _refuse(f"{of.name} is known only when the run has ended, so it cannot abort it")
        if abort and of.grows and op in (">", ">="):
            _refuse(
                f"{of.name} grows until the end, so {op} is decided only there and cannot abort"
            )
        for name in targets:
            if not _TARGET.fullmatch(name):
                _refuse(
                    f"{name!r} is no name of a target; wanted as in 'lambda,web: http.p95 < 200'"
                )
        delay_s = _delay_s(after) if after else 0.0
    except ConfigurationError as error:
        raise ConfigurationError(f"threshold {text!r}: {error}") from None
    return Parts(tuple(targets), of.name, op, limit, bool(abort), delay_s)


def _split(pattern: re.Pattern[str], text: str) -> tuple[str, str, str]:
    found = pattern.search(text)
    if found is None:
        return text.strip(), "", ""
    return text[: found.start()].strip(), found.group(), text[found.end() :].strip()


def _expression(text: str) -> tuple[Metric, Operator, str]:
    """Return the metric, the operator and the text of the limit."""
    name, sign, value = _split(_SIGNS, text)
    if not sign:
        name, _, rest = text.partition(" ")
        if not name:
            _refuse("nothing to check; wanted as in 'http.p95 < 200'")
        metric(name)
        sign = rest.partition(" ")[0]
        if not sign or sign[0].isdigit():
            _refuse(f"an operator is missing after {name}; in a shell, quote it: '{name} < ...'")
    if not name:
        _refuse(f"the metric is missing before {sign}; there are: {', '.join(METRICS)}")
    of = metric(name)
    if sign not in COMPARE:
        meant = _MEANT.get(sign.lower())
        hint = f"did you mean {meant}?" if meant else f"there are: {' '.join(COMPARE)}"
        _refuse(f"{sign!r} is no operator; {hint}")
    if not value:
        _refuse(f"the limit is missing after {sign}")
    return of, sign, value


def _limit(text: str, of: Metric) -> float:
    """Return a limit in the unit of its metric's kind."""
    found = _VALUE.fullmatch(text)
    if found is None:
        _refuse(f"{text!r} is no number")
    sign, digits, unit = found[1], found[2], found[3].strip()
    if digits[0] in "nNiI":
        _refuse(f"{digits} is no limit")
    number, factor = Decimal(digits), of.units.get(unit)
    if unit and factor is None:
        if unit.partition(" ")[0] in ("after", "for"):
            _refuse(f"{unit!r} belongs behind abort, as in 'abort after 10s'")
        wanted = f"wanted {', '.join(of.units)}" if of.units else "it takes a number alone"
        _refuse(f"{unit!r} is no unit of {of.name} ({of.meaning}); {wanted}")
    # 0.5 could be half of all or half a percent.
    if factor is None and of.kind == "share" and number:
        either = f" or {plain(100 * number)}%" if number <= 1 else ""
        _refuse(f"{of.name} is a share, so write {number}%{either}")
    limit = float(number * (factor or 1))
    if not math.isfinite(limit):
        _refuse(f"{digits} is too large for a limit")
    if sign == "-" and limit:
        _refuse(f"nothing that is measured is below 0, so {text} is no limit")
    return limit


def _refuse_senseless(of: Metric, op: Operator, limit: float) -> None:
    """Refuse a limit that can never be held, and equality with a figure that has decimals."""
    text = shown(limit, of)
    if op == "<" and limit == 0:
        _refuse("nothing that is measured is below 0; did you mean == 0?")
    if of.kind == "share" and (limit > 1 or (limit == 1 and op == ">")):
        _refuse(f"a share is at most 100%, so {op} {text} says nothing")
    if op != "==" or limit == 0:
        return
    if of.kind != "count":
        _refuse(f"{of.name} is hardly ever exactly {text}; write <= or >=")
    if not limit.is_integer():
        _refuse(f"{of.name} is a whole number and never {text}")


def _delay_s(text: str) -> float:
    """Return the seconds of `after TIME`."""
    word, _, time = text.partition(" ")
    if word != "after":
        _refuse(f"{text!r} is not expected behind abort; wanted as in 'abort after 10s'")
    if not time:
        _refuse("the time is missing behind 'abort after'; wanted as in 'abort after 10s'")
    bare = time.replace(" ", "")
    if not bare or _TIME.sub("", bare):
        _refuse(f"{time!r} is no time; wanted a number and ms, s, m or h, as in 10s or 1m30s")
    return math.fsum(float(number) * _SECONDS[unit] for number, unit in _TIME.findall(bare))


def _refuse(reason: str) -> NoReturn:
    raise ConfigurationError(reason)
