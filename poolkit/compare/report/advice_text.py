"""The recommended settings in sentences, and a target's settings in a row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from poolkit.compare.results.wording import NOTHING, count, figure, join, milliseconds, optional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.compare.results.advice import Advice, Doubt, Reason
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.sweep import Sweep
    from poolkit.compare.results.target_result import TargetResult

_UNKNOWN: Mapping[Reason, str] = {
    "deployed": "a deployed target does not report its pool to this run",
    "not reported": "its processes reported no pool of SQLAlchemy",
    "no checkout": "it checked out no connection in the measured time",
    "not counted": "its pool does not count the connections in use",
    "no size in force": "its pool takes no size, so all were measured with the same",
    "no size sustained": "no size of its pool sustained the load; measure at a lower one",
}
_DOUBTS: Mapping[Doubt, str] = {
    "stopped early": "the measurement did not reach its end",
    "saturated": "the load generator was too slow",
    "errors": "more than 1 % of the requests failed",
    "short": "the measured time was under 10 s (--duration)",
    "few checkouts": "there were fewer than 200 checkouts",
    "busy machine": "the processor was fully used",
    "closed loop": (
        "users waited for their answers, so slow answers lowered the load (--rates does not wait)"
    ),
    "light load": "requests hardly overlapped; measure at the rate of production",
    "once": "each size was measured once (--repeat 3)",
    "limited": "the pool limited the connections in use, so the need beyond it is not known",
}
_SURE = {"good": "Sure", "fair": "Fairly sure", "low": "Unsure"}


class SettingsRow(NamedTuple):
    """What is shown of one target's settings and their use, as texts."""

    pool: str
    timeout: str
    recycle: str
    pre_ping: str
    driver: str
    processes: str
    in_use: str
    overflow: str
    waited: str
    held: str
    in_sql: str


def settings_row(target: TargetResult) -> SettingsRow:
    """Return the settings that were in force and what was used of them; a dash where not known."""
    pool, holds = target.pool, target.holds
    held = milliseconds(holds.p95_ms) if holds else NOTHING
    share = holds.busy_share if holds else None
    in_sql = NOTHING if share is None else f"{share:.0%}".replace("%", " %")
    if pool is None:
        unknown = dict.fromkeys(SettingsRow._fields, NOTHING)
        known = {"processes": optional(target.instances, 0), "held": held, "in_sql": in_sql}
        return SettingsRow(**{**unknown, **known})
    found = pool.settings
    never = found.recycle_s is not None and found.recycle_s < 0
    recycle = "never" if never else NOTHING if found.recycle_s is None else f"{found.recycle_s:g} s"
    pre_ping = NOTHING if found.pre_ping is None else "yes" if found.pre_ping else "no"
    idle_s = target.preset.get("ping_after_idle") if target.connections.uses_preset else None
    if idle_s and not found.pre_ping:
        pre_ping = f"after {idle_s:g} s idle"
    return SettingsRow(
        pool=found.described,
        timeout=NOTHING if found.timeout_s is None else f"{found.timeout_s:g} s",
        recycle=recycle,
        pre_ping=pre_ping,
        driver=found.driver,
        processes=f"{pool.processes} x {count(pool.threads, 'thread')}",
        in_use=f"{optional(pool.out_max, 0)}/{optional(found.most, 0)}",
        overflow=optional(pool.overflow_max, 0),
        waited=f"{milliseconds(pool.waited_p95_ms)}/{milliseconds(pool.waited_max_ms)}",
        held=held,
        in_sql=in_sql,
    )


def advice_text(name: str, results: Results) -> str:
    """Return the recommendation for a target with its reason, and how sure it is.

    Args:
        name: of the target, or of one whose pool sizes were compared.
        results: with its advice.
    """
    advice = results.advice[name]
    sweep = next((each for each in results.sweeps if each.target == name), None)
    if advice.action == "unknown":
        return f"Not known which settings it needs: {_UNKNOWN[advice.reason]}."
    measured = next((t for t in results.targets if t.name == name), None)
    if sweep is not None:
        names = {each.name for each in sweep.points}
        at = next(e for n in names for e in results.levels.get(n, ()) if e.level == sweep.level)
        measured = at.middle
    assert measured is not None  # noqa: S101  (there is advice for measured targets alone)
    sentences = [_reason(advice, measured, sweep), _basis(advice)]
    return " ".join(filter(None, sentences))


def _reason(advice: Advice, target: TargetResult, sweep: Sweep | None) -> str:
    if advice.action == "bound concurrency":
        found, rate = target.execution_environments, figure(target.requests_per_s)
        served = (
            f"{count(found, 'execution environment')} served {rate} requests/s. " if found else ""
        )
        each, setting = "execution environment", "reserved concurrency"
        if advice.reason == "one task at a time":
            each, setting = "child of the worker", "its processes"
        return (
            f"{served}Each {each} uses one connection at a time: their number is the setting "
            f"({setting}), and the pool's size has no effect."
        )
    if sweep is not None and sweep.knee is not None and advice.action == "set":
        little = ""
        if sweep.little is not None:
            little = f" Little's law gives {sweep.little.size} (mean {figure(sweep.little.mean)})."
        # The overflow was measured too if it is that of the knee.
        room = ""
        if (advice.max_overflow or 0) > sweep.knee.max_overflow:
            room = f" The overflow of {advice.max_overflow} is room for a higher peak."
        return (
            f"Take {_size(advice)} in each process: {sweep.knee.label} is the smallest size within 5 % "
            f"of the best p95 and throughput at {sweep.level.name}.{room}{little}"
        )
    if advice.reason == "no room":
        return (
            f"The server has room for {count(advice.budget or 0, 'connection')} in each process, too "
            "few for the peak with headroom: use fewer processes, shorten holds, raise "
            "max_connections, or put a pooler in front."
        )
    return _use(advice, target)


def _use(advice: Advice, target: TargetResult) -> str:
    """Return what was used of the pool, and what follows."""
    pool, size = target.pool, _size(advice)
    if pool is None or advice.action == "use a pool":
        return (
            "It opens a connection for every checkout, and nothing bounds their number: a pool of "
            f"{size} would keep them (the peak was {optional(target.connections.peak, 0)})."
        )
    limit = "" if pool.settings.most is None else f" of {pool.settings.most:,}"
    each = " in each process" if pool.processes > 1 else ""
    used = (
        f"{pool.out_max or 0:,}{limit} connections used{each} at "
        f"{figure(target.requests_per_s)} requests/s"
    )
    waited = f"checkouts waited {milliseconds(pool.waited_p95_ms)} at p95"
    waited += f", and {count(pool.timeouts, 'checkout')} got none" if pool.timeouts else ""
    if advice.action == "shorten holds":
        return f"{used}, and {waited}: shorten the holds of {advice.holder} before the pool grows."
    texts: dict[Reason, str] = {
        "unused": f"{used}: {size} would do.",
        "unlimited": f"{used}, and the pool has no limit: {size} would do.",
        "over budget": (
            f"{used}, but the server has room for {advice.budget or 0:,} in each process: {size} "
            "would do."
        ),
        "in use": f"{used}: keep {size}.",
        "near limit": f"{used}, with too few left for a higher peak: take {size}.",
        "waited": f"{used}, and {waited}: take a larger pool, such as {size}.",
    }
    return texts[advice.reason]


def _basis(advice: Advice) -> str:
    """Return how the recommendation was found, how sure it is, and what would make it surer."""
    found = {"measured": "measured with --pool-sizes", "estimated": "estimated from the peak"}
    basis = found.get(advice.basis, "")
    doubts = join([_DOUBTS[doubt] for doubt in advice.doubts], ";")
    sure = _SURE.get(advice.certainty, "")
    text = f"{sure}, {basis}" if basis else sure
    text += f": {doubts}." if doubts else "."
    if advice.try_sizes:
        text += f" To be surer, try --pool-sizes {','.join(map(str, advice.try_sizes))}."
    return text


def _size(advice: Advice) -> str:
    if advice.max_overflow == -1:
        return f"{advice.pool_size}, with unlimited overflow"
    return f"{advice.pool_size}+{advice.max_overflow}"
