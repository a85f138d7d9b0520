"""What would make a fleet fit, and what holds for every fleet."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from poolkit.budget.model import Database, Overlap, Pooler, Service
from poolkit.budget.quantity import known, product, total, unknown
from poolkit.budget.suggestions import applied, suggestions
from poolkit.budget.verdict import Budget

PLATFORMS = ["ECS service", "Lambda function", "Deployment", "compose service"]


def quantities(low, high, *, may_be_unknown):
    """Give numbers and, where asked, unknown ones."""
    numbers = st.integers(low, high).map(lambda value: known(value, "here"))
    return st.one_of(numbers, st.just(unknown("nobody said"))) if may_be_unknown else numbers


@st.composite
def overlaps(draw):
    kind = draw(st.sampled_from(["none", "percent", "surge_percent", "count"]))
    return Overlap(kind=kind, amount=draw(st.integers(0, 200 if "percent" in kind else 5)))


@st.composite
def services(draw, name="s", *, may_be_unknown=False):
    flag = {"may_be_unknown": may_be_unknown}
    return Service(
        name=name,
        platform=draw(st.sampled_from(PLATFORMS)),
        where=None,
        instances=draw(quantities(0, 60, **flag)),
        overlap=draw(overlaps()),
        processes=draw(quantities(1, 8, **flag)),
        pool_size=draw(quantities(1, 50, **flag)),
        max_overflow=draw(quantities(0, 100, **flag)),
    )


@st.composite
def budgets(draw, *, may_be_unknown=False):
    fleet = [
        draw(services(f"s{n}", may_be_unknown=may_be_unknown))
        for n in range(draw(st.integers(0, 4)))
    ]
    poolers = []
    if draw(st.booleans()):
        proxy = draw(st.booleans())
        number = known(draw(st.integers(1, 100)), "here")
        poolers.append(
            Pooler(
                name="pooler",
                kind="RDS Proxy" if proxy else "PgBouncer",
                where=None,
                instances=known(draw(st.integers(1, 3)), "here"),
                overlap=draw(overlaps()),
                percent=number if proxy else None,
                server_connections=None if proxy else number,
                clients=None if proxy else known(draw(st.integers(1, 2000)), "here"),
            )
        )
        fleet = [
            dataclasses.replace(s, through=draw(st.sampled_from(["", "pooler"]))) for s in fleet
        ]
    database = Database(
        name="db",
        kind="PostgreSQL",
        where=None,
        max_connections=draw(quantities(4, 5000, may_be_unknown=may_be_unknown)),
        formula=draw(st.sampled_from(["", "db.m7g.large, 8 GiB"])),
        reserved=known(3, "here"),
    )
    return Budget(database=database, services=tuple(fleet), poolers=tuple(poolers))


def fits_as_far_as_known(budget):
    return budget.known <= budget.available and not budget.crowded


@given(budgets())
@settings(max_examples=150, deadline=None)
def test_a_suggestion_that_is_followed_makes_it_fit(budget):
    """Whatever the fleet: applying one suggestion is enough."""
    for suggestion in suggestions(budget):
        after = applied(budget, suggestion)
        assert fits_as_far_as_known(after), suggestion
        assert after.verdict == "fits", suggestion


@given(budgets(may_be_unknown=True))
@settings(max_examples=150, deadline=None)
def test_a_suggestion_with_unknowns_makes_it_fit_as_far_as_it_is_known(budget):
    """Unknown numbers stay unknown; the known ones then fit."""
    for suggestion in suggestions(budget):
        assert fits_as_far_as_known(applied(budget, suggestion)), suggestion


@given(budgets(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_suggested_change_is_the_largest_that_fits(budget, data):
    """One more than a suggested number does not fit any more."""
    alone = [s for s in suggestions(budget) if s.kind == "change" and s.changes[0][1] != "clients"]
    for suggestion in alone:
        name, number, value = suggestion.changes[0]
        larger = dataclasses.replace(suggestion, changes=((name, number, value + 1),))
        assert not fits_as_far_as_known(applied(budget, larger)), suggestion


@given(budgets(may_be_unknown=True), services("another", may_be_unknown=True))
@settings(max_examples=150, deadline=None)
def test_one_more_service_never_lowers_the_sum(budget, service):
    """Neither the sum nor what is known of it gets smaller, and what is unknown stays so."""
    larger = dataclasses.replace(budget, services=(*budget.services, service))
    assert larger.known >= budget.known
    assert budget.needed is not None or larger.needed is None
    if larger.needed is not None:
        assert larger.needed >= budget.needed
    if budget.verdict != "fits":
        assert larger.verdict != "fits"


@given(budgets(may_be_unknown=True))
@settings(max_examples=150, deadline=None)
def test_an_unknown_is_never_a_number(budget):
    """A service with any unknown number has no ceiling, and the fleet then does not "fit"."""
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
    """Nobody said that the unknown factor is a number at all."""
    assert product(0, None) is None
    assert total(1, None) is None
    assert (product(), total()) == (1, 0)


def fleet(*, instances=10, pool=(20, 10), room=100):
    """Give one ECS service that doubles in a deployment."""
    service = Service(
        name="web",
        platform="ECS service",
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
        formula="db.t4g.micro, 1 GiB: ...",
        reserved=known(5, "here"),
    )
    return Budget(database=database, services=(service,))


def test_suggestions_by_hand():
    """20 tasks x 30 = 600 of 100: a pool of 4, one task (2 x 30), or a larger class."""
    texts = [each.text for each in suggestions(fleet())]
    assert texts == [
        "web: a pool of 4+0 at most (now 20+10)",
        "web: 1 task at most (now 10)",
        "database: max_connections 609 at least (604 and 5 reserved), which db.t4g.large has",
        (
            "web behind RDS Proxy or PgBouncer with 96 server connections for its 600 clients: "
            "pays off if no more than 96 of them are in a transaction at once"
        ),
    ]


def test_overflow_gives_way_before_the_pool():
    """A smaller ceiling takes from the overflow first: kept connections are the cheap ones."""
    (first, *_) = suggestions(fleet(instances=1, pool=(10, 40), room=64))
    # 2 x per process + 4 within 64.
    assert first.text == "web: a pool of 10+20 at most (now 10+40)"


def test_where_nothing_alone_is_enough_all_give_way_together():
    """Two services that are each too large: smaller pools, and then fewer instances."""
    one = fleet(room=50)
    two = dataclasses.replace(one.services[0], name="api")
    budget = dataclasses.replace(one, services=(*one.services, two))
    (together, *_) = suggestions(budget)
    assert together.kind == "together"
    assert applied(budget, together).verdict == "fits"
