"""What the numbers of a run show, in plain sentences.

Each sentence is derived from facts and is left out where its fact is unknown. Two targets count as
tied where the repeats of one differ as much among themselves as from the other's. Without repeats,
they are tied where the 95 % intervals of their latencies overlap, or where the latencies differ by
less than 10 %. The intervals assume independent requests, but neighbouring requests are not
independent.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from poolkit.compare.results.levels import (
    LEAST_FOR_A_KNEE,
    highest_sustained,
    is_tie_of_repeats,
    knee_candidates,
)
from poolkit.compare.results.pools import is_held_idle
from poolkit.compare.results.wording import (
    Spread,
    count,
    figure,
    join,
    milliseconds,
    percent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import Evidence
    from poolkit.compare.results.target_result import Interval, TargetResult

TIE = 0.10
"""Two latencies that differ by less than this share are a tie, whatever their intervals are."""
EVERY_REQUEST = 0.9
"""Connections per request from which "every request paid for a new connection" is true."""
KEPT = 0.1
"""Connections per request below which a target counts as one that keeps its connections."""
LONG_TAIL = 4.0
"""p95 in multiples of p50 from which a tail is worth a sentence."""
QUEUED_SHARE = 0.05
"""The share of samples with every connection busy from which requests queued for one."""
LONG_OUT_MS = 2000.0
"""The age at the end from which a connection that is still out is worth a sentence."""
BUSY_MACHINE = 0.9
"""The share of all cores from which latencies include waiting for a processor."""
SENTENCES = 3
"""The most sentences of a finding, unless more of them are reservations."""


def distance_text(results: Results) -> str:
    """Return the distance to the database, the cost of the proxy that makes it, and of a connect."""
    machine = results.machine
    used = max((_of_networks(target) for target in results.targets), default=0.0)
    added, far, near = machine.proxy_added_ms, machine.connect_ms, machine.loopback_connect_ms
    return (
        f"{machine.distance}, made by a proxy in front of the database; by itself the proxy adds "
        f"{added:.2f} ms to a round trip (p50) and used up to {used:.2f} cores. A connect takes "
        f"{far:.1f} ms over this distance. On the loopback address alone it takes {near:.1f} ms, so a "
        "run there shows too little of what each new connection costs."
    )


def _of_networks(target: TargetResult) -> float:
    """Return the CPU share of the proxies: before the database, and before PgBouncer."""
    return sum(used for role, used in target.cpu_share.items() if role.startswith("network"))


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
    reference, text = reference_text(results), headline(targets)
    at_reference = f"{reference}: {text}" if reference and text else text
    parts = [load_headline(results), at_reference]
    return dataclasses.replace(results, targets=targets, headline=" ".join(filter(None, parts)))


# -- one target -----------------------------------------------------------------------------


def finding(target: TargetResult, results: Results) -> str:
    """Return the sentences about one target: its connections, what went wrong, what stands out."""
    if not target.requests:
        return "No request was scheduled in the measured time."
    reservations = list(_reservations(target))
    if target.errors == target.requests:
        # Nothing worked: its size and its latency are not those of the application.
        held = target.range_of("db.connections.max")
        is_held = held is None or held.high > 0
        connections = _connections(target, results.targets) if is_held else "It held no connection."
        return " ".join([*reservations, connections])
    holds = list(_holds(target))
    sentences = [_connections(target, results.targets), *reservations, *holds]
    used, cores = sum(target.cpu_share.values()), results.machine.cores
    if cores and not target.saturated and used > BUSY_MACHINE * cores:
        most = max(target.cpu_share, key=lambda role: target.cpu_share[role])
        sentences.append(
            f"{used:.1f} of {cores} cores were busy (mostly the {most}), "
            "so latencies include waiting for a processor."
        )
    sentences += [*_tail(target), *_room(target)]
    return " ".join(sentences[: max(SENTENCES, len(reservations) + len(holds) + 1)])


_KINDS = {"unsent": "dropped (never sent)", "unanswered": "timed out (no answer by the end)"}
OVERLOADED = 0.05
"""The share of late and never answered requests from which their numbers stand beside the failed ones."""
_STATUSES = {
    ("lambda", "429"): "429 (no execution environment was free)",
    ("web", "503"): "503 (no connection or no database was available)",
}


def _reservations(target: TargetResult) -> Iterator[str]:
    """Yield failures, and what limits the meaning of the figures; none of these is left out."""
    is_overloaded = target.late + target.never > OVERLOADED * target.requests
    if is_overloaded:
        # A late load generator is no fault of the target.
        prefix = "Of" if target.saturated else "Overloaded: of"
        yield f"{prefix} {count(target.requests, 'request')}, {_outcomes(target)}."
    if target.errors and not (is_overloaded and target.errors == target.never):
        kinds = []
        for kind, number in target.error_kinds.items():
            # Why a deployed target failed cannot be seen from here.
            meaning = None if target.url is not None else _STATUSES.get((target.kind, kind))
            kinds.append(f"{number:,} x {meaning or _KINDS.get(kind, kind)}")
        more = [f"{len(kinds) - 3} other kinds"] if len(kinds) > 3 else []
        yield (
            f"{target.errors:,} of {count(target.requests, 'request')} failed "
            f"({percent(target.errors / target.requests)}): {join([*kinds[:3], *more], ';')}."
        )
    # A pooler keeps its connections by design.
    if (left := target.connections.left_over) and not target.preset.get("transaction_pooling"):
        verb = "was" if left == 1 else "were"
        yield f"{count(left, 'connection')} {verb} left open on the server after the target had stopped."
    if target.saturated:
        yield (
            f"Its latency is an upper bound: {target.saturated_by}, "
            "and that delay is part of the latency."
        )
    late = count(target.backlog, "request")
    if target.warmed_up_too_short:
        yield (
            f"The warm-up was too short: {late} of it were answered only in the measured time and "
            "delayed the requests behind them. Give it more time with --warm-up."
        )
    elif target.backlog:
        prefix = "" if is_overloaded else "Overloaded: "
        yield f"{prefix}{late} of the warm-up still waited when the measured time began."
    if target.failure:
        yield f"It failed under the load: {target.failure}."
    elif target.partial:
        yield f"Stopped early: the figures cover only {figure(target.measured_s)} s."


def _outcomes(target: TargetResult) -> str:
    """Return how many requests were answered in time, late and never, and how many failed."""
    failed = target.errors - target.never
    parts = [
        f"{target.in_time:,} were answered in time (within 1 s)",
        f"{target.late:,} late",
        f"{target.never:,} never",
        *([f"{failed:,} with an error"] if failed else []),
    ]
    return join(parts)


def evidence_lines(evidence: Evidence | None, folder: str = "") -> list[str]:
    """Return what the logs say about failed requests, a line each.

    Args:
        evidence: of a target; None if it did not fail.
        folder: the run's folder, before each path; without it paths are relative to the folder.
    """
    if evidence is None:
        return []
    prefix = f"{folder}/" if folder else ""
    exception = evidence.load_exception or "no exception"
    errors = evidence.target_errors or ("no error",)
    return [
        f"First exception of the load: {exception} ({prefix}{evidence.load_log})",
        f"Last errors of the target: {errors[0]}",
        *errors[1:-1],
        f"{errors[-1] if errors[1:] else ''} ({prefix}{evidence.target_log})".strip(),
    ]


# -- connections ----------------------------------------------------------------------------


def _connections(target: TargetResult, others: Sequence[TargetResult]) -> str:
    """Return the sentence about the connections that a target opened and held."""
    opened, per_request = target.range_of("db.opened"), target.range_of("db.opened_per_request")
    most, ceiling = target.range_of("db.connections.max"), target.connections.ceiling
    at_most, at_once = "", "the number open at once is not known either"
    if target.connections.peak is None and not target.connections.unseen_s:
        at_once += ", because none was recognised as the target's"
    if most is not None:
        at_most = f" of at most {ceiling:,}" if ceiling and ceiling >= most.high else ""
        verb = "was" if most.high == 1 else "were"
        at_once = f"{most.high:,.0f}{at_most} {verb} open at once"
    # The settings of a preset say nothing about an application that does not use it.
    preset = target.preset if target.connections.uses_preset else {}
    if preset.get("transaction_pooling"):
        return _through_pooler(target, opened, at_once)
    if opened is None or per_request is None:
        return f"The number of connections it opened is not known; {at_once}."
    if opened.high == 0:
        held = "its connections" if most is None else count(round(most.high), "connection")
        text = f"Kept {held}{at_most}"
        if target.execution_environments and most is not None:
            text = f"{count(target.execution_environments, 'execution environment')} held {held}"
        return f"{text} and opened none after the warm-up."
    if per_request.median >= EVERY_REQUEST:
        return _one_each(target, per_request, others, at_once)
    rate = (
        f", one for every {figure(1 / per_request.median)} requests" if per_request.median else ""
    )
    text = f"Opened {_number(opened)}{rate}"
    size = preset.get("pool_size")
    if preset.get("pool") == "queue" and isinstance(size, int):
        peak = most.high if most else 0
        if peak > size * (target.instances or 1) and opened.median > peak:
            return f"{text}: connections beyond pool_size {size} are closed after each use."
    return f"{text}; {at_once}."


def _one_each(
    target: TargetResult, per_request: Spread, others: Sequence[TargetResult], at_once: str
) -> str:
    """Return the cost of a connection for every request, beside a target that keeps its own."""
    text = (
        f"Opened {_opened_text(target)} ({per_request.median:.2f} per request): "
        "every request paid for a new connection"
    )
    kept = None
    for other in others:
        if other.kind == target.kind and not other.preset.get("transaction_pooling"):
            opened = other.range_of("db.opened_per_request")
            if opened is not None and opened.median < KEPT:
                kept = other
                break
    if target.latency_ms is None or kept is None or kept.latency_ms is None:
        return f"{text}; {at_once}."
    p50, p50_kept = milliseconds(target.latency_ms.p50), milliseconds(kept.latency_ms.p50)
    if tied(target, kept, "p50"):
        return f"{text}, yet p50 ({p50}) is no different from {kept.name}'s."
    return f"{text}; p50 is {p50}, against {p50_kept} for {kept.name}, which kept its connections."


def _through_pooler(target: TargetResult, opened: Spread | None, at_once: str) -> str:
    events = target.connections.pool_events_opened
    if opened is None:
        return f"The number of connections the pooler opened is not known; {at_once}."
    if events is None:
        new = _number(opened) if opened.high else "no new connection"
        return f"The pooler opened {new} to the server; {at_once}."
    new = _number(opened) if opened.high else "none"
    return (
        f"Connected {events:,} times to the pooler for {count(target.served, 'request')}; the "
        f"pooler opened {new} to the server; {at_once}."
    )


def _holds(target: TargetResult) -> Iterator[str]:
    """Yield which line holds connections without SQL, and which takes a second one."""
    holds = target.holds
    if holds is None:
        return
    # One endpoint among many may hold connections for long, and hardly show in the whole.
    site = next((site for site in holds.sites if is_held_idle(site)), None)
    if site is not None and site.p95_ms is not None and site.busy_share is not None:
        unit = f" ({site.unit})" if site.unit else ""
        yield (
            f"{site.where}{unit} held a connection for {milliseconds(site.p95_ms)} at p95, and SQL ran "
            f"in {percent(site.busy_share)} of that time: it is held over something else."
        )
    out = max(holds.sites, key=lambda site: site.out_ms, default=None)
    if out is not None and out.out_ms >= LONG_OUT_MS:
        yield (
            f"A connection of {out.where} was still out at the end, for {milliseconds(out.out_ms)}."
        )
    if holds.nested_checkouts:
        nested = max(holds.sites, key=lambda site: site.nested)
        made = (
            "1 checkout was"
            if holds.nested_checkouts == 1
            else (f"{holds.nested_checkouts:,} checkouts were")
        )
        yield (
            f"{made} made with another connection of the pool in hand ({nested.where}): under load, "
            "such requests wait for each other."
        )


def _opened_text(target: TargetResult) -> str:
    """Return the connections opened and the requests they served, with the range of the repeats."""
    # Without repeats, the requests that the connections were opened for.
    requests = round(target.spread["http.requests"].median) if target.spread else target.served
    opened = target.range_of("db.opened") or Spread(0, 0, 0)
    return f"{_number(opened)} for {count(requests, 'request')}"


def _number(opened: Spread) -> str:
    low, median, high = opened
    text = f"{median:,.0f} {'connection' if median == 1 else 'connections'}"
    return f"{text} ({low:,.0f} to {high:,.0f})" if low < high else text


# -- the tail, and room in the server -------------------------------------------------------


def _tail(target: TargetResult) -> Iterator[str]:
    latency, cold, found = target.latency_ms, target.cold, target.connections
    if latency is None:
        return
    init = (
        f"about {milliseconds(cold.init_ms_p50)} " if cold and cold.init_ms_p50 is not None else ""
    )
    if cold and cold.slowest and cold.among_slowest * 2 >= cold.slowest:
        yield (
            f"Cold starts are {percent(cold.among_slowest / cold.slowest)} of the slowest 1 % "
            f"(p99 {milliseconds(latency.p99)}): {cold.count:,} of them, {init}each."
        )
    elif latency.p95 >= LONG_TAIL * latency.p50:
        text = f"p95 ({milliseconds(latency.p95)}) is {figure(latency.p95 / latency.p50)} times p50"
        queued = found.at_ceiling_share or 0
        is_pooled = target.preset.get("pool") == "queue" and not target.backlog
        if queued >= QUEUED_SHARE:
            yield (
                f"{text}, and in {percent(queued)} of the samples all {found.ceiling} connections "
                "were in use: requests queued for one."
            )
        elif is_pooled and found.ceiling and found.busy_peak is not None:
            yield (
                f"{text}, though no sample had more than {found.busy_peak} of {found.ceiling} "
                "connections in use: it did not wait for the pool."
            )
        else:
            yield f"{text}."
    elif cold and cold.count:
        yield f"{count(cold.count, 'cold start')} in the measured time, {init}each."
    elif (target.figures["db.opened_per_request"] or 0) < EVERY_REQUEST:
        yield f"p50 {milliseconds(latency.p50)}, p95 {milliseconds(latency.p95)}."
    else:
        yield f"p95 {milliseconds(latency.p95)}, p99 {milliseconds(latency.p99)}."


def _room(target: TargetResult) -> Iterator[str]:
    """Yield whether the server has room for the target's ceiling, and for how many of them."""
    found = target.connections
    ceiling, most, usable = found.ceiling, found.max_connections, found.usable_connections
    if ceiling and usable is not None:
        room = f"max_connections {most:,} less {most - usable:,} reserved by the server"
        if ceiling > usable:
            yield f"Its ceiling of {ceiling:,} is more than {room} allows."
        elif target.kind != "lambda":
            fit = usable // ceiling
            each = "" if fit == 1 else " each"
            yield (
                f"There is room for {count(fit, 'such target')} with {ceiling:,} connections{each}: "
                f"{room}."
            )
    elif not ceiling and found.peak:
        reason = f" ({found.ceiling_reason})" if found.ceiling_reason else ""
        yield (
            f"Its connection ceiling is not known{reason}; the peak was {found.peak:,} of "
            f"max_connections {most:,}."
        )


# -- all targets ----------------------------------------------------------------------------


def tied(a: TargetResult, b: TargetResult, name: Literal["p50", "p95"]) -> bool:
    """Return True if a percentile of two targets, or of one in two runs, is too close to call.

    Targets with repeats are compared by their repeats, others by confidence intervals.
    """
    first_spread, second_spread = a.spread.get(f"http.{name}"), b.spread.get(f"http.{name}")
    if first_spread is not None and second_spread is not None:
        return is_tie_of_repeats(first_spread, second_spread)
    first, second = a.latency_ms, b.latency_ms
    if first is None or second is None:
        return first is second
    if name == "p50":
        return is_tie(first.p50, second.p50, first.p50_interval, second.p50_interval)
    return is_tie(first.p95, second.p95, first.p95_interval, second.p95_interval)


def is_tie(a: float, b: float, a_interval: Interval, b_interval: Interval) -> bool:
    """Return True if two latencies, each measured once, are too close to call."""
    overlap = a_interval.low <= b_interval.high and b_interval.low <= a_interval.high
    return overlap or abs(a - b) < TIE * max(a, b)


def headline(targets: Sequence[TargetResult]) -> str:
    """Return the targets with the most connections opened, the fastest, and those with failures."""
    # The latency of these is affected by something other than the target.
    doubtful = [t.name for t in targets if t.saturated or t.backlog > 0]
    # A worker is not ranked: its time from enqueue to commit is no response time.
    ranked = [t for t in targets if t.kind != "worker" and t.name not in doubtful]
    sentences = [_most_opened(targets), _fastest(ranked)]
    if doubtful:
        sentences.append(f"Not ranked by latency (the reason is below): {join(doubtful)}.")
    if failed := [
        f"{t.name} ({t.errors - t.never:,} of {t.requests:,})"
        for t in targets
        if t.errors > t.never
    ]:
        sentences.append(f"Requests failed in {join(failed)}.")
    if never := [f"{t.name} ({t.never:,} of {t.requests:,})" for t in targets if t.never]:
        sentences.append(f"Requests were never answered in {join(never)}.")
    return " ".join(filter(None, sentences))


def _most_opened(targets: Sequence[TargetResult]) -> str:
    known = [
        (each, t)
        for t in targets
        if t.served and (each := t.range_of("db.opened_per_request")) is not None
    ]
    if len(known) < 2:
        return ""
    known.sort(key=lambda pair: pair[0].median)
    (_, least), (highest, most) = known[0], known[-1]
    if not highest.high:
        return "No target opened a connection after the warm-up."
    close = [t.name for each, t in known[:-1] if t.spread and is_tie_of_repeats(each, highest)]
    if len(close) == len(known) - 1:
        return (
            "The numbers of connections opened are too close to call: "
            f"{most.name} {_opened_text(most)}, {least.name} {_opened_text(least)}."
        )
    also = f", too close to {join(close)} to call" if close else ""
    text = f"{most.name} opened {_opened_text(most)}{also}"
    none = [t.name for each, t in known if not each.high]
    if none:
        return f"{text}; {join(none)} opened none after the warm-up."
    return f"{text}, {least.name} {_opened_text(least)}."


def _fastest(ranked: Sequence[TargetResult]) -> str:
    timed = [(t.latency_ms.p95, t) for t in ranked if t.latency_ms]
    if len(timed) < 2:
        return ""
    timed.sort(key=lambda pair: pair[0])
    (best, fastest), (worst, slowest) = timed[0], timed[-1]
    close = [t.name for _, t in timed[1:] if tied(fastest, t, "p95")]
    if len(close) == len(timed) - 1:
        return f"Their p95 latencies are too close to call ({milliseconds(best)} to {milliseconds(worst)})."
    also = f", too close to {join(close)} to call" if close else ""
    return (
        f"At p95 {fastest.name} was fastest ({milliseconds(best)}{also}), "
        f"{slowest.name} took {figure(worst / best)} times as long ({milliseconds(worst)})."
    )


# -- several loads --------------------------------------------------------------------------


def load_finding(name: str, results: Results) -> str:
    """Return the load a target sustained, what stopped it, and where its knee is.

    Empty for a run with one load that was measured once.
    """
    levels, sentences = results.levels[name], []
    if results.has_levels:
        has_limits = any(threshold.applies_to(name) for threshold in results.thresholds)
        within = " within its thresholds" if has_limits else ""
        top = highest_sustained(levels)
        at = levels.index(top) if top else -1
        rate = top.spread.get("http.rate") if top else None
        answered = f" ({figure(rate.median)} requests answered per second)" if rate else ""
        higher = levels[at + 1 :]
        missed = [each for each in levels[: max(at, 0)] if not each.sustained]
        if top is None:
            sentences.append(f"Sustained none of the loads{within}.")
        else:
            highest = "" if higher else "the highest load, "
            sentences.append(f"Sustained {highest}{top.level.name}{answered}{within}.")
        if higher:
            sentences.append(f"It did not sustain {higher[0].level.name}: {higher[0].why_not}.")
        if missed:
            names = join([each.level.name for each in missed])
            sentences.append(f"Yet it did not sustain {names}: {missed[0].why_not}.")
        known, knee = knee_candidates(levels), results.knees.get(name)
        if knee is not None:
            below = "at or below" if knee.level == known[0].level else "at"
            sentences.append(
                f"The knee, its best throughput for its latency, is {below} {knee.level.name}: "
                f"{figure(knee.answered_per_s)} requests per second in "
                f"{milliseconds(knee.latency_ms)} on average; beyond it, latency grows faster than "
                "throughput."
            )
        elif len(known) >= LEAST_FOR_A_KNEE:
            last = known[-1].level.name
            sentences.append(f"No knee up to {last}: latency grew no faster than throughput.")
    at_reference = next(each for each in levels if each.level == results.reference)
    p95, repeats = at_reference.spread.get("http.p95"), len(at_reference.repeats)
    if results.has_repeats and p95 is not None and repeats > 1:
        sentences.append(
            f"In {count(repeats, 'measurement')} at {results.reference.name}, p95 was from "
            f"{milliseconds(p95.low)} to {milliseconds(p95.high)}."
        )
    return " ".join(sentences)


def load_headline(results: Results) -> str:
    """Return the highest load that each target sustained; empty for a run with one load."""
    if not results.has_levels:
        return ""
    by_load: dict[str, list[str]] = {level.name: [] for level in reversed(results.plan.levels)}
    by_load["none"] = []
    for name, levels in results.levels.items():
        top = highest_sustained(levels)
        by_load[top.level.name if top else "none"].append(name)
    texts = [f"{load} by {join(names)}" for load, names in by_load.items() if names]
    within = " within the thresholds" if results.thresholds else ""
    return f"Highest load sustained{within}: {'; '.join(texts)}."


def reference_text(results: Results) -> str:
    """Return the load at which targets are compared, and the reason; empty if there is one load."""
    if not results.has_levels:
        return ""
    levels = [each for of in results.levels.values() for each in of]
    if all(each.sustained for each in levels if each.level == results.reference):
        return f"At {results.reference.name}, the highest load that every target sustained"
    return (
        f"At {results.reference.name}, the lowest load, since no load was sustained by every target"
    )
