"""The report as one HTML file: no script, no external request, for light and dark screens.

The templates beside this module have the page's structure; every value goes into them through
Jinja2's autoescape. The pictures are SVG by vl-convert, which escapes its own text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from poolkit.compare.charts.style import colours
from poolkit.compare.report.advice_text import advice_text, settings_row
from poolkit.compare.report.findings import distance_text, evidence_lines, reference_text
from poolkit.compare.results import wording
from poolkit.compare.results.pools import is_held_idle
from poolkit.compare.results.wording import count, join, origin
from poolkit.thresholds import unmet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.compare.charts.picture import Picture
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import By, Plan
    from poolkit.thresholds import Threshold


_LABELLED = re.compile(
    r'<(path|line) aria-label="([^"]*)" role="[^"]*" aria-roledescription="[^"]*" ([^>]*)/>'
)
"""A mark with the text of `charts.picture.on_hover`."""
MOST_SITES = 15
"""The lines of a target that hold connections, in its table."""
_WAYS: Mapping[By, str] = {
    "preset": "by the name of the preset",
    "name": "by PGAPPNAME",
    "address": "by the address of a socket of its processes",
    "user": "by the user",
    "rest": "as the only client of the run's server",
}


def rendered(template: str, **values: object) -> str:
    """Return a page made from one of the templates."""
    environment = Environment(
        loader=PackageLoader("poolkit.compare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (
        *(
            drawing,
            evidence_lines,
            is_held_idle,
            prose,
            settings_row,
            wording.figure,
            wording.figure_with_range,
            wording.milliseconds,
        ),
        *(wording.of_ceiling, wording.optional, wording.percent, wording.with_range, wording.join),
    )
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(template).render(values)


def run_page(results: Results, pictures: Sequence[Picture]) -> str:
    """Return the report of one run."""
    names = [*results.levels, *(t.name for t in results.targets), *results.advice]
    names = list(dict.fromkeys(names))
    judged = [verdict for verdict in results.verdicts if verdict.status != "not applicable"]
    limited: dict[Threshold, list[str]] = {threshold: [] for threshold in results.thresholds}
    for verdict in results.verdicts:
        if verdict.target not in limited[verdict.threshold]:
            limited[verdict.threshold].append(verdict.target)
    return rendered(
        "run.html",
        results=results,
        plan=results.plan,
        colours=colours(names),
        load=load_text(results.plan)
        + (f" Database: {machine.distance}." if (machine := results.machine).distance else ""),
        by_load=next((picture for picture in pictures if picture.name == "levels"), None),
        by_size=next((picture for picture in pictures if picture.name == "pool-sizes"), None),
        pictures=[p for p in pictures if p.name not in ("levels", "pool-sizes")],
        advice={name: advice_text(name, results) for name in results.advice},
        reference=reference_text(results),
        limited={threshold: targets for threshold, targets in limited.items() if targets},
        loads=[level.name for level in results.plan.levels] if results.has_levels else [""],
        verdicts={(v.threshold, v.target, v.load): v for v in results.verdicts},
        failed=len(unmet(judged)),
        checks=count(len(judged), "check"),
        MOST_SITES=MOST_SITES,
        facts=how(results),
    )


def prose(text: str) -> str:
    """Return a text in which a number stays on one line with its unit and its sign."""
    return re.sub(r"(?<=\d) (?=(ms|s)\b|%)|(?<=[<>]) (?=\d)", "\u00a0", text)


def drawing(picture: Picture) -> Markup:
    """Return a picture's SVG with identifiers of its own: every picture counts from 0."""
    svg = picture.svg().replace('id="clip', f'id="{picture.name}-clip')
    # A browser shows a title at the pointer, without a script.
    svg = _LABELLED.sub(r"<\1 \3><title>\2</title></\1>", svg)
    # vl-convert has escaped whatever text of the run folder is in it.
    return Markup(svg.replace("url(#clip", f"url(#{picture.name}-clip"))  # noqa: S704


def load_text(plan: Plan) -> str:
    """Return the load of a run in a sentence."""
    levels, first = plan.levels, plan.levels[0]
    offered = [f"{level.offered_per_s:g}" for level in levels]
    if first.is_open:
        spacing = "random (Poisson)" if first.arrivals == "poisson" else "even"
        load = (
            f"Open loop: {join(offered)} tasks per second arrive at every target, spacing {spacing}"
        )
        load += f", with at most {first.max_users:,} users at once" if first.max_users else ""
    else:
        users = join([f"{level.users:,}" for level in levels])
        rates = join(
            [f"{rate:g}" for rate in sorted({level.rate_per_user or 0 for level in levels})]
        )
        offered_range = offered[0] if len(offered) == 1 else f"{offered[0]} to {offered[-1]}"
        load = (
            f"Closed loop: {users} {'user' if users == '1' else 'users'} with {rates} tasks per second "
            f"each, which offers {offered_range} per second to every target"
        )
    each = "each " if len(levels) > 1 else ""
    times = f", {count(plan.repeat, 'time')} in turn" if plan.repeat > 1 else ""
    return (
        f"{load}, {each}for {plan.duration_s:g} s after {plan.warm_up_s:g} s of warm-up{times}; "
        f"presets of {plan.environment}, max_connections {plan.max_connections:,}."
    )


def loop_text(plan: Plan) -> str:
    """Return the kind of load, and what it means for latencies."""
    if plan.levels[0].is_open:
        return (
            "open: tasks begin on schedule, whatever the target does; they do not wait for earlier "
            "answers, so a stall delays every task that arrives meanwhile"
        )
    return (
        "closed: every user follows a schedule of its own and waits for each answer before it "
        "continues; the delay of what then begins late counts as latency"
    )


def how(results: Results) -> Mapping[str, str]:
    """Return machine, versions, load and other facts behind the figures, by name."""
    machine, plan = results.machine, results.plan
    local = [planned.name for planned in plan.targets if planned.url is None]
    if len(local) == len(plan.targets):
        shared = "load generator, targets and database share it"
    elif not local:
        shared = "of the load generator; the targets and their database run elsewhere"
    else:
        shared = (
            f"of the load generator, shared with {join(local)} and their database; "
            "the others run elsewhere"
        )
    ceilings, owners = [], []
    for target in results.targets:
        found = target.connections
        ceiling = "not known" if found.ceiling is None else f"{found.ceiling:,}"
        reason = f" ({found.ceiling_reason})" if found.ceiling_reason else ""
        ceilings.append(f"{target.name} {ceiling}{reason}")
        ways = [f"{number:,} {_WAYS[by]}" for by, number in found.attributed_by.items()]
        owners += [f"{target.name} {join(ways)}"] if ways else []
    facts = {
        "Command": plan.command,
        "Load": load_text(plan),
        "Loop": loop_text(plan),
        "Machine": (
            f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.1f} GiB, {machine.os}, "
            f"Python {machine.python}; {shared}"
        ),
        "Versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        or "unknown",
        "Samples": f"every {plan.interval_s:g} s",
        "Connection ceilings": "; ".join(ceilings),
    }
    facts |= {"Distance": distance_text(results)} if machine.distance else {}
    if owners:
        facts["Connections recognised"] = (
            f"{'; '.join(owners)}; each connection counts once, those of the warm-up too"
        )
    deployed = [
        f"{planned.name} at {origin(planned.url)}" for planned in plan.targets if planned.url
    ]
    facts |= {"Deployed": "; ".join(deployed)} if deployed else {}
    facts |= {f"Note on {t.name}": "; ".join(t.warnings) for t in results.targets if t.warnings}
    return facts | {f"Without {absent.name}": absent.reason for absent in results.absent}
