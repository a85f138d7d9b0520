"""The load of a run in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.compare.results.wording import count, join

if TYPE_CHECKING:
    from poolkit.compare.results.run_folder import Level, Plan


def load_words(plan: Plan) -> str:
    """Return the load in a sentence."""
    levels = plan.levels
    each = "each " if len(levels) > 1 else ""
    times = f", {count(plan.repeat, 'time')} in turn" if plan.repeat > 1 else ""
    return (
        f"{_open(levels) if levels[0].is_open else _closed(levels)}, "
        f"{each}for {plan.duration_s:g} s after {plan.warm_up_s:g} s of warm-up{times}; presets of "
        f"{plan.environment}, max_connections {plan.max_connections:,}."
    )


def _closed(levels: tuple[Level, ...]) -> str:
    users = join([f"{level.users:,}" for level in levels])
    who = "user" if users == "1" else "users"
    rates = sorted({level.rate_per_user or 0 for level in levels})
    return (
        f"Closed loop: {users} {who} with {join([f'{rate:g}' for rate in rates])} tasks a second "
        f"each, so {_offered(levels)} a second offered to every target"
    )


def _open(levels: tuple[Level, ...]) -> str:
    rates = join([f"{level.offered_per_s:g}" for level in levels])
    spaced = "at random (Poisson)" if levels[0].arrivals == "poisson" else "evenly spaced"
    most = levels[0].max_users
    users = f", for at most {most:,} users at once" if most else ""
    return f"Open loop: {rates} tasks a second arrive at every target, {spaced}{users}"


def _offered(levels: tuple[Level, ...]) -> str:
    rates = [f"{level.offered_per_s:g}" for level in levels]
    return rates[0] if len(rates) == 1 else f"{rates[0]} to {rates[-1]}"


def loop_words(plan: Plan) -> str:
    """Return what kind of load it is, and what that means for latencies."""
    if plan.levels[0].is_open:
        return (
            "open: tasks begin at their moment whatever the target does, so those behind a slow "
            "answer wait for nobody and a stall meets all that arrive meanwhile"
        )
    return (
        "closed: every user follows a schedule of its own and waits for its answer before it goes on; "
        "what it then begins too late counts from the moment it was due"
    )
