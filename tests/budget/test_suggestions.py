"""Suggestions that make a deployment fit, and rules that hold for every budget."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from poolkit.budget.model import Database, Overlap, Pooler, Service, known, product, total, unknown
from poolkit.budget.report.rows import ways_out
from poolkit.budget.suggestions import applied, suggestions
from poolkit.budget.verdict import Budget

UNITS = ["task", "execution environment", "pod", "replica", "instance"]


def quantities(low, high, *, may_be_unknown):
    numbers = st.integers(low, high).map(lambda value: known(value, "here"))
    return st.one_of(numbers, st.just(unknown("a reason"))) if may_be_unknown else numbers


@st.composite
def overlaps(draw):
    kind = draw(st.sampled_from(["none", "percent", "surge_percent", "count"]))
    return Overlap(kind=kind, amount=draw(st.integers(0, 200 if "percent" in kind else 5)))


@st.composite
def services(draw, name="s", *, may_be_unknown=False):
    flag = {"may_be_unknown": may_be_unknown}
    return Service(
        name=name,
        platform="Deployment",
        unit=draw(st.sampled_from(UNITS)),
        where=None,
        instances=draw(quantities(0, 60, **flag)),
        overlap=draw(overlaps()),
        processes=draw(quantities(1, 8, **flag)),
        pool_size=draw(quantities(1, 50, **flag)),
        max_overflow=draw(quantities(0, 100, **flag)),
    )


@st.composite
def budgets(draw, *, may_be_unknown=False):
    deployment = [
        draw(services(f"s{n}", may_be_unknown=may_be_unknown))
        for n in range(draw(st.integers(1, 4)))
    ]
    poolers = []
    for number in range(draw(st.integers(0, 2))):
        proxy = draw(st.booleans())
        size = known(draw(st.integers(1, 100)), "here")
        poolers.append(
            Pooler(
                name=f"pooler{number}",
                kind="RDS Proxy" if proxy else "PgBouncer",
                where=None,
                instances=known(draw(st.integers(1, 3)), "here"),
                overlap=draw(overlaps()),
                percent=size if proxy else None,
                server_connections=None if proxy else size,
                clients=None if proxy else known(draw(st.integers(1, 2000)), "here"),
            )
        )
    names = ["", *(each.name for each in poolers)]
    deployment = [dataclasses.replace(s, through=draw(st.sampled_from(names))) for s in deployment]
    limit = draw(quantities(4, 5000, may_be_unknown=may_be_unknown))
    is_estimate = limit.is_known and draw(st.booleans())
    database = Database(
        name="db",
        kind="PostgreSQL",
        where=None,
        max_connections=limit,
        lowest=limit.value - draw(st.integers(0, limit.value // 3)) if is_estimate else None,
        highest=limit.value + draw(st.integers(0, 300)) if is_estimate else None,
        instance_class=draw(st.sampled_from(["", "db.m7g.large"])),
        reserved=known(3, "here"),
    )
    return Budget(database=database, services=tuple(deployment), poolers=tuple(poolers))


def fits_as_far_as_known(budget):
    return not (budget.is_over or budget.is_close or budget.overloads)


@given(budgets())
def test_a_suggestion_that_is_followed_makes_it_fit(budget):
    """One suggestion is enough for any budget."""
    for suggestion in suggestions(budget):
        after = applied(budget, suggestion)
        assert fits_as_far_as_known(after), suggestion
        assert after.verdict == "fits", suggestion


@given(budgets(may_be_unknown=True))
def test_a_suggestion_with_unknowns_makes_it_fit_as_far_as_it_is_known(budget):
    """Unknown numbers stay unknown; the known ones then fit."""
    for suggestion in suggestions(budget):
        assert fits_as_far_as_known(applied(budget, suggestion)), suggestion


@given(budgets(), st.data())
def test_a_suggested_change_is_the_largest_that_fits(budget, data):
    """One more than a suggested number does not fit any more."""
    found = [each for each in suggestions(budget) if each.kind == "change"]
    alone = [each for each in found if each.changes[0].number != "clients"]
    for suggestion in alone:
        (change,) = suggestion.changes
        one_more = change._replace(value=change.value + 1)
        larger = suggestion._replace(changes=(one_more,))
        assert not fits_as_far_as_known(applied(budget, larger)), suggestion


@given(budgets(may_be_unknown=True), services("another", may_be_unknown=True))
def test_one_more_service_never_lowers_the_sum(budget, service):
    """The sum and its known part never shrink, and an unknown sum stays unknown."""
    larger = dataclasses.replace(budget, services=(*budget.services, service))
    assert larger.known >= budget.known
    assert budget.needed is not None or larger.needed is None
    if larger.needed is not None:
        assert larger.needed >= budget.needed
    if budget.verdict != "fits":
        assert larger.verdict != "fits"


@given(budgets(may_be_unknown=True))
def test_an_unknown_is_never_a_number(budget):
    """A service with an unknown number has no ceiling, and the verdict is never "fits"."""
    for service in budget.services:
        numbers = [quantity.value for quantity in service.numbers.values()]
        if None in numbers:
            assert service.ceiling is None
            assert service.steady is None
            assert "?" in service.formula
            assert service.through or budget.verdict != "fits"
    if budget.database.max_connections.value is None:
        assert budget.verdict != "fits"
        assert suggestions(budget) == ()


def test_zero_times_unknown_is_unknown():
    """An unknown factor may be no number at all."""
    assert product(0, None) is None
    assert total(1, None) is None
    assert (product(), total()) == (1, 0)


def deployment(*, instances=10, pool=(20, 10), room=100):
    """Return one ECS service whose tasks double during a deployment."""
    service = Service(
        name="web",
        platform="ECS service",
        unit="task",
        where=None,
        instances=known(instances, "here"),
        overlap=Overlap(kind="percent", amount=100),
        processes=known(1, "here"),
        pool_size=known(pool[0], "here"),
        max_overflow=known(pool[1], "here"),
    )
    database = Database(
        name="db",
        kind="RDS",
        where=None,
        max_connections=known(room + 5, "here"),
        instance_class="db.t4g.micro",
        reserved=known(5, "here"),
    )
    return Budget(database=database, services=(service,))


def test_suggestions_by_hand():
    """20 tasks x 30 = 600 of 100: a pool of 4, one task (2 x 30), or a larger class."""
    texts = [each.text for each in suggestions(deployment())]
    assert texts == [
        "web: pool at most 4+0 (now 20+10)",
        "web: tasks at most 1 (now 10)",
        "database: max_connections at least 609 (604 and 5 reserved), which db.t4g.large has",
    ]


def test_overflow_is_reduced_before_the_pool():
    """The pool's connections are reused, which makes them cheap."""
    (first, *_) = suggestions(deployment(instances=1, pool=(10, 40), room=64))
    # 2 x per process + 4 within 64.
    assert first.text == "web: pool at most 10+20 (now 10+40)"


def test_all_services_shrink_if_no_single_change_is_enough():
    """Two services that are each too large get smaller pools."""
    one = deployment(room=50)
    two = dataclasses.replace(one.services[0], name="api")
    budget = dataclasses.replace(one, services=(*one.services, two))
    (together, *_) = suggestions(budget)
    assert together.kind == "together"
    assert applied(budget, together).verdict == "fits"


def test_a_service_that_cannot_fit_has_no_way_out():
    """With an unknown number of tasks, one task alone is too much."""
    full = deployment(room=50)
    unclear = dataclasses.replace(full.services[0], instances=unknown("a reason"))
    (group,) = ways_out(dataclasses.replace(full, services=(unclear,)))
    assert "web does not fit" in group.sentence


def test_advice_is_true_with_the_unknowns_in_it():
    """With an unknown service beside it, no change makes the deployment fit."""
    full = deployment()
    other = dataclasses.replace(full.services[0], name="other", instances=unknown("a reason"))
    budget = dataclasses.replace(full, services=(*full.services, other))
    (group,) = ways_out(budget)
    assert "cannot be shown to fit" in group.sentence
    assert group.entries
    assert "makes it fit" in ways_out(full)[0].sentence


def test_a_proxy_keeps_its_share_of_a_larger_server():
    """100 % of any max_connections leaves nothing for migrations and operators."""
    full = deployment()
    proxy = Pooler(
        name="proxy",
        kind="RDS Proxy",
        where=None,
        instances=known(1, "here"),
        overlap=Overlap(),
        percent=known(100, "here"),
    )
    behind = dataclasses.replace(full.services[0], through="proxy")
    budget = dataclasses.replace(full, services=(behind,), poolers=(proxy,))
    assert {each.kind for each in suggestions(budget)} == {"change"}


def test_where_nothing_helps_it_is_said():
    """The reserve takes all connections, and the proxy its share of any number."""
    full = deployment(room=2)
    assert suggestions(full)
    proxies = [
        Pooler(
            name=name,
            kind="RDS Proxy",
            where=None,
            instances=known(1, "here"),
            overlap=Overlap(),
            percent=known(100, "here"),
        )
        for name in ("a", "b")
    ]
    budget = dataclasses.replace(full, poolers=tuple(proxies), operators=9)
    assert suggestions(budget) == ()
    (group,) = ways_out(budget)
    assert group.sentence.startswith("No change")


def test_poolers_of_one_name_change_together():
    """Two stacks may each have a proxy of that name."""
    full = deployment(room=50)
    proxy = Pooler(
        name="proxy",
        kind="RDS Proxy",
        where=None,
        instances=known(1, "here"),
        overlap=Overlap(),
        percent=known(70, "here"),
    )
    budget = dataclasses.replace(full, services=(), poolers=(proxy, proxy))
    (together, *_) = suggestions(budget)
    assert applied(budget, together).verdict != "does not fit"
