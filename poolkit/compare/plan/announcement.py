"""What a run is going to do, said before it begins."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from poolkit.compare.results.wording import without_passwords

if TYPE_CHECKING:
    from poolkit.compare.plan.options import Options
    from poolkit.compare.plan.plan import Plan

MINUTE_S = 60.0


def announcement(plan: Plan) -> str:
    """Return the load, the targets and how long it will take, a line each."""
    options = plan.options
    names = ", ".join(planned.target.name for planned in plan.targets)
    load = f"{_load(options)}, preset numbers of {options.environment}"
    lines = [f"{load}, max_connections {options.max_connections}: {names}"]
    lines += [
        f"{planned.target.name} is deployed at {without_passwords(planned.url or '')}, "
        f"its database takes {planned.max_connections} connections and is only watched"
        for planned in plan.deployed
    ]
    return "\n".join([*lines, *absences(plan), _time(plan)])


def absences(plan: Plan) -> list[str]:
    """Return a line for each target that cannot run here."""
    return [f"{name} is not there: {reason}" for name, reason in plan.absent]


def _load(options: Options) -> str:
    if options.rates:
        rates = _listed([f"{level.arrival_rate:g}" for level in options.levels])
        return f"open loop, {rates} {options.arrivals} arrivals/s"
    users = _listed([f"{level.users:,}" for level in options.levels])
    noun = "user" if users == "1" else "users"
    return f"{users} {noun}, {options.rate_per_user:g} tasks/s each"


def _time(plan: Plan) -> str:
    options = plan.options
    each_s = options.warm_up_s + options.duration_s
    number = len(plan.targets) * len(options.levels) * options.repeat
    words = "1 measurement" if number == 1 else f"{number} measurements"
    rounds = f", in {options.repeat} rounds" if options.repeat > 1 else ""
    return f"{words} of {each_s:g} s{rounds}: about {_duration(plan.seconds)} in all"


def _duration(seconds: float) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{ceil(seconds)} s"
    return f"{ceil(seconds / MINUTE_S)} min"


def _listed(words: list[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
