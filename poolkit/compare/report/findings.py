"""What the numbers say, in plain sentences.

Each sentence is drawn from facts and is left out where its fact is not there. Two targets
count as tied where the repeats of one differ from each other as much as from the other's.
Without repeats, where their latencies' 95 % intervals overlap, or differ by less than 10 %:
those intervals take requests for independent of each other, which neighbours are not.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from poolkit.compare.report.level_findings import load_finding, load_headline, reference_words
from poolkit.compare.results.levels import is_tie_of_repeats
from poolkit.compare.results.target_result import Spread
from poolkit.compare.results.wording import (
    count,
    figure,
    join,
    milliseconds,
    percent,
    times_as_long,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.compare.results.results import Results
    from poolkit.compare.results.target_result import Interval, Latency, TargetResult

TIE = 0.10
"""A smaller difference between two latencies is none, whatever their intervals say."""
EVERY_REQUEST = 0.9
"""Connections per request from which "every request paid for a connect" is true."""
LONG_TAIL = 4.0
"""p95 in multiples of p50 from which a tail is worth a sentence."""
QUEUED_SHARE = 0.05
"""The share of samples with every connection busy from which requests queued for one."""
BUSY_MACHINE = 0.9
"""The share of all cores from which latencies include waiting for a processor."""
SENTENCES = 3
NONE = Spread(0.0, 0.0, 0.0)


def with_findings(results: Results) -> Results:
    """Return the results with a finding for every target and a headline above them."""
    targets = tuple(
        dataclasses.replace(
            target,
            finding=finding(target, results),
            load_finding=load_finding(target.name, results),
        )
        for target in results.targets
    )
    at = reference_words(results)
    said = headline(targets)
    words = [load_headline(results), f"{at}: {said}" if at and said else said]
    return dataclasses.replace(results, targets=targets, headline=" ".join(filter(None, words)))


def finding(target: TargetResult, results: Results) -> str:
    """Return the sentences about one target: its connections, what went wrong, what stands out."""
    if not target.requests:
        return "No request was due in the time measured."
    must = [*_failures(target), *_reservations(target)]
    said = [*_connections(target, results.targets), *must, *_machine(target, results)]
    said += [*_tail(target), *_room(target)]
    return " ".join(said[: max(SENTENCES, len(must) + 1)])


# -- failures -------------------------------------------------------------------------------

_KINDS = {"unsent": "never sent", "unanswered": "never answered"}
_STATUSES = {
    ("lambda", "429"): "429, no execution environment was free",
    ("web", "503"): "503, no connection or no database was to be had",
}


def _failures(target: TargetResult) -> Iterator[str]:
    if target.errors:
        share = percent(target.errors / target.requests)
        kinds = [f"{n:,} x {_kind(target, kind)}" for kind, n in target.error_kinds.items()]
        more = [f"{len(kinds) - 3} other kinds"] if len(kinds) > 3 else []
        yield (
            f"{target.errors:,} of {count(target.requests, 'request')} failed ({share}): "
            f"{join([*kinds[:3], *more], ';')}."
        )
    # A pooler keeps its connections; that is what it is for.
    if target.connections.left_over and not _has_pooler(target):
        left = count(target.connections.left_over, "connection")
        yield f"{left} stayed behind on the server after it was stopped."


def _kind(target: TargetResult, kind: str) -> str:
    """Return a kind of failure in words; why something that is elsewhere failed is not known."""
    words = _STATUSES.get((target.kind, kind), kind) if target.url is None else kind
    return _KINDS.get(kind, words)


# -- connections ----------------------------------------------------------------------------


def _connections(target: TargetResult, others: Sequence[TargetResult]) -> Iterator[str]:
    opened, each = _opened(target), _per_request(target)
    if _has_pooler(target):
        yield _through_pooler(target)
    elif opened is None or each is None:
        yield f"How many connections it opened is not known; {_peak(target)}."
    elif opened.high == 0:
        yield _kept(target)
    elif each.median >= EVERY_REQUEST:
        yield _one_each(target, others)
    else:
        yield _some(target)


def _opened(target: TargetResult) -> Spread | None:
    """Return the connections opened: lowest, median and highest of the repeats, or one thrice."""
    return _known(target, "db.opened", target.connections.opened)


def _per_request(target: TargetResult) -> Spread | None:
    return _known(target, "db.opened_per_request", target.per_request)


def _known(target: TargetResult, metric: str, measured_once: float | None) -> Spread | None:
    if target.spread:
        return target.spread.get(metric)
    return None if measured_once is None else Spread(*(measured_once,) * 3)


def _opened_words(target: TargetResult) -> str:
    """Return how many it opened and for how many requests, with the range of the repeats."""
    requests = round(target.spread["http.requests"].median) if target.spread else target.served
    return f"{_many(_opened(target) or NONE)} for {count(requests, 'request')}"


def _many(opened: Spread) -> str:
    low, median, high = opened
    said = f"{median:,.0f} {'connection' if median == 1 else 'connections'}"
    return f"{said} ({low:,.0f} to {high:,.0f})" if low < high else said


def _most_at_once(target: TargetResult) -> int | None:
    of_repeats = target.spread.get("db.connections.max")
    return round(of_repeats.high) if of_repeats else target.connections.peak


def _has_pooler(target: TargetResult) -> bool:
    return bool(target.preset.get("transaction_pooling"))


def _peak(target: TargetResult) -> str:
    peak = _most_at_once(target)
    if peak is None:
        return "how many were open at once is not known either"
    ceiling = target.connections.ceiling
    at_most = f" of at most {ceiling:,}" if ceiling and ceiling >= peak else ""
    return f"{peak:,}{at_most} {'was' if peak == 1 else 'were'} open at once"


def _kept(target: TargetResult) -> str:
    environments, peak = target.execution_environments, _most_at_once(target)
    if environments and peak is not None:
        held = count(peak, "connection")
        return f"{count(environments, 'execution environment')} held {held}, none opened after the warm-up."
    ceiling = target.connections.ceiling
    at_most = f" of at most {ceiling:,}" if ceiling and peak is not None and ceiling >= peak else ""
    held = "its connections" if peak is None else count(peak, "connection")
    return f"Kept {held}{at_most} and opened none after the warm-up."


def _one_each(target: TargetResult, others: Sequence[TargetResult]) -> str:
    each = (_per_request(target) or NONE).median
    said = f"Opened {_opened_words(target)} ({each:.2f} each): every request paid for a connect"
    kept = _same_but_kept(target, others)
    if target.latency_ms is None or kept is None or kept.latency_ms is None:
        return f"{said}; {_peak(target)}."
    mine, theirs = target.latency_ms, kept.latency_ms
    if tied(target, kept, "p50"):
        return f"{said}, yet p50 ({milliseconds(mine.p50)}) is no different from {kept.name}'s."
    return (
        f"{said}; p50 is {milliseconds(mine.p50)}, against {milliseconds(theirs.p50)} for "
        f"{kept.name}, which kept its connections."
    )


def _same_but_kept(target: TargetResult, others: Sequence[TargetResult]) -> TargetResult | None:
    """Find the same kind of deployable that kept its connections: what connecting costs."""
    alike = (o for o in others if o.kind == target.kind and not _has_pooler(o))
    return next((o for o in alike if (each := _per_request(o)) and each.median < 0.1), None)


def _some(target: TargetResult) -> str:
    opened, each = _opened(target) or NONE, _per_request(target)
    said = f"Opened {_many(opened)}"
    said += f", one for every {figure(1 / each.median)} requests" if each and each.median else ""
    size = target.preset.get("pool_size")
    if target.preset.get("pool") == "queue" and isinstance(size, int):
        peak, instances = _most_at_once(target) or 0, target.instances or 1
        if peak > size * instances and opened.median > peak:
            return f"{said}: what overflows a pool of {size} is closed again after each use."
    return f"{said}; {_peak(target)}."


def _through_pooler(target: TargetResult) -> str:
    opened, events = _opened(target), target.connections.pool_events_opened
    if opened is None:
        return f"How many connections the pooler opened is not known; {_peak(target)}."
    if events is None:
        new = _many(opened) if opened.high else "no new connection"
        return f"The pooler opened {new} to the server; {_peak(target)}."
    return (
        f"Connected {events:,} times to the pooler for {count(target.served, 'request')}, which "
        f"opened {_many(opened) if opened.high else 'none'} to the server; {_peak(target)}."
    )


# -- what limits the meaning of the figures ------------------------------------------------


def _reservations(target: TargetResult) -> Iterator[str]:
    if target.saturated:
        yield (
            f"Its latency is an upper bound: {target.saturated_by}, "
            "and what the generator waits is counted."
        )
    if target.backlog:
        yield _backlog(target)
    if target.partial:
        yield f"Stopped early: the figures are from {figure(target.measured_s)} s."


def _backlog(target: TargetResult) -> str:
    late = count(target.backlog, "request")
    if not target.warmed_up_too_short:
        return f"It was given more than it answers: {late} of the warm-up were still waiting."
    return (
        f"The warm-up was too short: {late} of it had to be answered inside the time measured, "
        "and those behind them waited."
    )


def _machine(target: TargetResult, results: Results) -> Iterator[str]:
    used, cores = sum(target.cpu_share.values()), results.machine.cores
    if cores and not target.saturated and used > BUSY_MACHINE * cores:
        most = max(target.cpu_share, key=lambda role: target.cpu_share[role])
        yield (
            f"{used:.1f} of {cores} cores were busy (most of it the {most}), "
            "so latencies include waiting for a processor."
        )


# -- the tail -------------------------------------------------------------------------------


def _tail(target: TargetResult) -> Iterator[str]:
    latency, cold = target.latency_ms, target.cold
    if latency is None:
        return
    if cold and cold.slowest and cold.among_slowest * 2 >= cold.slowest:
        yield (
            f"Cold starts are {percent(cold.among_slowest / cold.slowest)} of the slowest 1 % "
            f"(p99 {milliseconds(latency.p99)}): {cold.count:,} of them, {_init(cold.init_ms_p50)}each."
        )
    elif latency.p95 >= LONG_TAIL * latency.p50:
        yield _long_tail(target, latency)
    elif cold and cold.count:
        yield f"{count(cold.count, 'cold start')} in the time measured, {_init(cold.init_ms_p50)}each."
    elif (target.per_request or 0) < EVERY_REQUEST:
        yield f"p50 {milliseconds(latency.p50)}, p95 {milliseconds(latency.p95)}."
    else:
        yield f"p95 {milliseconds(latency.p95)}, p99 {milliseconds(latency.p99)}."


def _init(init_ms: float | None) -> str:
    return "" if init_ms is None else f"about {milliseconds(init_ms)} "


def _long_tail(target: TargetResult, latency: Latency) -> str:
    connections = target.connections
    said = f"p95 ({milliseconds(latency.p95)}) is {figure(latency.p95 / latency.p50)} times p50"
    if (connections.at_ceiling_share or 0) >= QUEUED_SHARE:
        return (
            f"{said}, and in {percent(connections.at_ceiling_share or 0)} of the samples all "
            f"{connections.ceiling} connections were in use: requests queued for one."
        )
    pooled = target.preset.get("pool") == "queue" and not target.backlog
    if pooled and connections.ceiling and connections.busy_peak is not None:
        return (
            f"{said}, though never more than {connections.busy_peak} of {connections.ceiling} "
            "connections were in use: it did not wait for the pool."
        )
    return f"{said}."


# -- room in the server ---------------------------------------------------------------------


def _room(target: TargetResult) -> Iterator[str]:
    ceiling, peak = target.connections.ceiling, target.connections.peak
    most, usable = target.connections.max_connections, target.connections.usable_connections
    if ceiling and usable is not None:
        yield from _room_for(ceiling, most, usable, is_function=target.kind == "lambda")
    elif not ceiling and peak:
        bound = (
            "Nothing bounds its connections" if target.url is None else "Its ceiling is not known"
        )
        yield f"{bound}; the peak was {peak:,} of max_connections {most:,}."


def _room_for(ceiling: int, most: int, usable: int, *, is_function: bool) -> Iterator[str]:
    room = f"max_connections {most:,} less the server's reserve of {most - usable:,}"
    if ceiling > usable:
        yield f"Its ceiling of {ceiling:,} is more than {room} allows."
    elif not is_function:
        fit = usable // ceiling
        yield (
            f"{room} has room for {fit:,} such {'deployment' if fit == 1 else 'deployments'} "
            f"of {ceiling:,}."
        )


# -- all targets ----------------------------------------------------------------------------


def tied(a: TargetResult, b: TargetResult, name: Literal["p50", "p95"]) -> bool:
    """Tell whether a percentile of two targets, or of one in two runs, is too close to call.

    Two that were measured repeatedly are told apart by their repeats, others by intervals.
    """
    mine, theirs = a.spread.get(f"http.{name}"), b.spread.get(f"http.{name}")
    if mine is not None and theirs is not None:
        return is_tie_of_repeats(mine, theirs)
    if a.latency_ms is None or b.latency_ms is None:
        return a.latency_ms is b.latency_ms
    first, second = a.latency_ms, b.latency_ms
    return is_tie(
        getattr(first, name),
        getattr(second, name),
        getattr(first, f"{name}_interval"),
        getattr(second, f"{name}_interval"),
    )


def is_tie(a: float, b: float, a_interval: Interval, b_interval: Interval) -> bool:
    """Tell whether two latencies, each measured once, are too close to call."""
    return a_interval.overlaps(b_interval) or abs(a - b) < TIE * max(a, b)


def headline(targets: Sequence[TargetResult]) -> str:
    """Return who opened how many connections, and who was fastest."""
    said = [_who_opened(targets), _who_was_fastest(targets), _not_ranked(targets)]
    said.append(_who_failed(targets))
    return " ".join(sentence for sentence in said if sentence)


def _who_opened(targets: Sequence[TargetResult]) -> str:
    known = [(t, each) for t in targets if t.served and (each := _per_request(t)) is not None]
    if len(known) < 2:
        return ""
    ordered = sorted(known, key=lambda pair: pair[1].median)
    (least, _), (most, highest) = ordered[0], ordered[-1]
    if not highest.high:
        return "No target opened a connection after the warm-up."
    close = [t.name for t, each in ordered[:-1] if t.spread and is_tie_of_repeats(each, highest)]
    if len(close) == len(known) - 1:
        return (
            "Connections opened are too close to call: "
            f"{most.name} {_opened_words(most)}, {least.name} {_opened_words(least)}."
        )
    also = f", too close to {join(close)} to call" if close else ""
    said = f"{most.name} opened {_opened_words(most)}{also}"
    none = [t.name for t, each in ordered if not each.high]
    if none:
        return f"{said}; {join(none)} opened none after the warm-up."
    return f"{said}, {least.name} {_opened_words(least)}."


def _who_was_fastest(targets: Sequence[TargetResult]) -> str:
    """Workers answer to nobody: their time from enqueue to commit is another thing."""
    ranked = [t for t in targets if t.kind != "worker" and not _is_doubtful(t)]
    timed = [(t, t.latency_ms) for t in ranked if t.latency_ms]
    if len(timed) < 2:
        return ""
    timed.sort(key=lambda pair: pair[1].p95)
    (fastest, best), (slowest, worst) = timed[0], timed[-1]
    close = [t.name for t, _ in timed[1:] if tied(fastest, t, "p95")]
    if len(close) == len(timed) - 1:
        return f"Their p95 latencies are too close to call ({milliseconds(best.p95)} to {milliseconds(worst.p95)})."
    also = f", too close to {join(close)} to call" if close else ""
    return (
        f"At p95 {fastest.name} was fastest ({milliseconds(best.p95)}{also}), "
        f"{slowest.name} took {times_as_long(worst.p95 / best.p95)} ({milliseconds(worst.p95)})."
    )


def _is_doubtful(target: TargetResult) -> bool:
    """Tell whether its latency is about something else than the target."""
    return target.saturated or target.backlog > 0


def _not_ranked(targets: Sequence[TargetResult]) -> str:
    names = [t.name for t in targets if _is_doubtful(t)]
    return f"Not ranked by latency, for the reason given below: {join(names)}." if names else ""


def _who_failed(targets: Sequence[TargetResult]) -> str:
    failed = [f"{t.name} ({t.errors:,} of {t.requests:,})" for t in targets if t.errors]
    return f"Requests failed in {join(failed)}." if failed else ""
