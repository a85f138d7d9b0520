"""The plan of a run, and the options that it is made from."""

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from poolkit.cli import main
from poolkit.compare.plan.checks import check_database_host
from poolkit.compare.plan.option_types import RATES, USERS, DeployedTarget, Names
from poolkit.compare.plan.options import Options, options_of
from poolkit.compare.plan.plan import announcement, make_plan, plan_run
from poolkit.compare.plan.targets import Deployed, Target
from poolkit.errors import ConfigurationError
from poolkit.local.distance import Distance
from poolkit.project import Project
from poolkit.thresholds import Threshold, thresholds_of


@pytest.fixture
def without_pgbouncer(monkeypatch):
    """Search for programs in folders that do not exist."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("poolkit.local.pgbouncer._MORE_PLACES", "/nonexistent")


def target(kind="lambda", **values):
    return Target(**{"name": kind, "kind": kind, "preset": kind, "locustfile": "load.py"} | values)


def ceiling_of(wanted, **options):
    (planned,) = make_plan([wanted], Options(**options)).record.targets
    return planned.ceiling, planned.ceiling_reason


def test_the_ceiling_is_the_number_of_pools_times_their_connections():
    """A prefork child runs one task at a time; a function is bounded by the users alone."""
    assert ceiling_of(target("web", processes=2)) == (60, "2 processes x 30")
    assert ceiling_of(target("worker", processes=4)) == (4, "4 processes x 1")
    assert ceiling_of(target(), users=(50,)) == (50, "concurrency 50 x 1")


def test_without_a_preset_the_ceiling_is_unknown():
    """The number of its processes is known, the pools in them are not."""
    assert ceiling_of(target("web", preset=None, processes=2)) == (
        None,
        "the target has no preset",
    )


def test_a_deployed_target_s_engine_is_not_changed(tmp_path):
    """--pool needs a process that this run starts."""
    (tmp_path / "load.py").touch()
    table = {"kind": "web", "app": "m:app", "locustfile": "load.py"}
    project = Project(root=tmp_path, table={"targets": {"web": table}})
    url = DeployedTarget().convert("web=http://127.0.0.1:1", None, None)
    with pytest.raises(ConfigurationError, match="--pool is for targets that this run starts"):
        plan_run(project, Options(pools=("now",), deployed=(url,)))


def test_an_interpreter_without_an_application_is_refused():
    """Targets of the tables name theirs themselves."""
    with pytest.raises(ConfigurationError, match="--python is for --app"):
        options_of({"python": Path("python3")}, command="poolkit compare")


def test_what_a_target_s_own_table_changes_is_in_the_plan():
    """A pool made larger by a target's `env` has the larger ceiling."""
    wanted = target("web", env={"POOLKIT_POOL_SIZE": "7", "POOLKIT_MAX_OVERFLOW": "1"})
    assert ceiling_of(wanted) == (8, "1 process x 8")
    with pytest.raises(ConfigurationError, match=r"targets.web\] env: POOLKIT_POOL_SIZE must be"):
        ceiling_of(target("web", env={"POOLKIT_POOL_SIZE": "many"}))


def test_fit_leaves_the_reserve_free():
    """`fit` uses the rest of max_connections, and at most one connection per user."""
    fit = target(name="lambda_warm", preset="lambda_warm", reserved_concurrency="fit")
    assert ceiling_of(fit, users=(30,), max_connections=30) == (24, "concurrency 24 x 1")
    assert ceiling_of(fit, users=(10,), max_connections=100) == (10, "concurrency 10 x 1")
    assert ceiling_of(fit, users=(30,), max_connections=30, reserve=12)[0] == 15


def test_behind_pgbouncer_the_ceiling_is_what_the_server_sees(monkeypatch):
    """The lower of the connections to the pooler and of its pool, which leaves some room."""
    monkeypatch.setattr("poolkit.compare.plan.plan.find_pgbouncer", lambda: "pgbouncer")
    function = target(name="f", preset="lambda_proxy", through="pgbouncer")
    shared = "PgBouncer's pool, which concurrency 40 x 1 share"
    assert ceiling_of(function, users=(40,)) == (20, shared)
    assert ceiling_of(function, users=(40,), max_connections=12) == (6, shared)
    within = (8, "concurrency 8 x 1, within PgBouncer's pool of 20")
    assert ceiling_of(function, users=(8,)) == within
    pooled = target("web", processes=2, through="pgbouncer")
    assert ceiling_of(pooled) == (20, "PgBouncer's pool, which 2 processes x 30 share")


def test_a_target_behind_pgbouncer_is_absent_where_it_is_missing(without_pgbouncer):
    """Without the binary the others run, and the plan says why this one does not."""
    proxied = target(name="lambda_proxy", preset="lambda_proxy", through="pgbouncer")
    plan = make_plan([target(), proxied], Options())
    assert [planned.name for planned in plan.record.targets] == ["lambda"]
    (absent,) = plan.record.absent
    assert absent.name == "lambda_proxy"
    assert "apt-get install pgbouncer" in absent.reason


@pytest.mark.process
def test_functions_are_absent_where_the_runtime_has_no_package(monkeypatch, bare_python):
    """On macOS the others run, and the plan says why functions do not."""
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setitem(sys.modules, "awslambdaric", None)
    plan = make_plan([target(python=bare_python), target("web")], Options())
    assert [planned.name for planned in plan.record.targets] == ["web"]
    (absent,) = plan.record.absent
    assert absent.name == "lambda"
    assert "packages for Linux only" in absent.reason


def test_an_absent_target_that_was_named_is_an_error(without_pgbouncer):
    """A report without it is not what was asked for."""
    proxied = target(name="lambda_proxy", preset="lambda_proxy", through="pgbouncer")
    with pytest.raises(ConfigurationError, match="lambda_proxy cannot run: pgbouncer is not"):
        make_plan([proxied], Options(targets=("lambda_proxy",)))
    with pytest.raises(ConfigurationError, match="none of the targets"):
        make_plan([proxied], Options())


def test_an_unknown_environment_is_refused():
    """The plan takes its numbers from a preset, which knows four environments."""
    with pytest.raises(ValueError, match="did you mean 'prod'"):
        make_plan([target()], Options(environment="production"))


def test_targets_alternate_at_each_level_in_each_round():
    """A drift then affects all of them alike."""
    plan = make_plan([target(), target("web")], Options(users=(1, 20), repeat=2))
    titles = [step.title for step in plan.steps()]
    assert titles[:4] == [
        *("lambda, 1 user, round 1", "web, 1 user, round 1"),
        *("lambda, 20 users, round 1", "web, 20 users, round 1"),
    ]
    assert titles[4:] == [text.replace("round 1", "round 2") for text in titles[:4]]
    assert len({step.label for step in plan.steps()}) == 8
    assert plan.steps()[-1].brief == "web, 20 users #2"
    assert [step.title for step in make_plan([target()], Options()).steps()] == ["lambda"]


def test_a_function_has_the_room_that_each_level_needs():
    """A closed loop's users, or an open loop's ready users; the plan has the highest level's."""
    plan = make_plan([target()], Options(users=(5, 20)))
    assert [step.planned.instances_max for step in plan.steps()] == [5, 20]
    assert plan.record.targets[0].instances_max == 20
    opened = make_plan([target()], Options(rates=(1, 200)))
    assert [step.planned.instances_max for step in opened.steps()] == [10, 50]
    fixed = make_plan([target(reserved_concurrency=7)], Options(rates=(1, 200)))
    assert [step.planned.instances_max for step in fixed.steps()] == [7, 7]


def deployed(name="web", kind="web"):
    database = {"max_connections": 300, "usable_connections": 290}
    return Deployed(target=target(kind, name=name), url="https://me:secret@x", **database)


def test_the_limits_of_a_deployed_target_are_unknown(without_pgbouncer):
    """Only those of its database; and a deployed target behind a pooler needs no pooler here."""
    proxied = target(name="lambda_proxy", preset="lambda_proxy", through="pgbouncer")
    there = Deployed(target=proxied, url="https://x", max_connections=300)
    plan = make_plan([target()], Options(), deployed=[deployed(), there])
    local, one, other = plan.record.targets
    assert (local.url, local.max_connections, local.ceiling) == (None, 100, 20)
    assert (one.url, one.max_connections) == ("https://me:***@x", 300)
    assert (local.usable_connections, one.usable_connections) == (97, 290)
    assert (one.ceiling, one.instances_max, other.ceiling) == (None, None, None)
    assert [len(plan.local), len(plan.deployed)] == [1, 2]


def test_each_threshold_in_the_plan_holds_alone():
    """A general threshold names the targets that a more exact one leaves to it."""
    table = {"thresholds": ["http.p95 < 200", "http.errors < 1%", "worker: db.opened < 9"]}
    found = thresholds_of(table, ["web: http.p95 < 0.1s"])
    plan = make_plan([target(), target("web")], Options(), thresholds=found)
    texts = plan.record.thresholds
    assert set(texts) == {"http.errors < 1%", "web: http.p95 < 0.1s", "lambda: http.p95 < 200 ms"}
    again = thresholds_of({}, texts)
    for name in ("lambda", "web"):
        assert [str(t) for t in again if t.applies_to(name)] == [
            str(Threshold.parse(text)) for text in texts if Threshold.parse(text).applies_to(name)
        ]


def test_the_announcement_has_the_levels_the_rounds_and_the_time():
    """The time is in seconds up to two minutes, and a deployed target has a line of its own."""
    plan = make_plan([target(), target("web")], Options(users=(1, 5, 20), repeat=3))
    lines = announcement(plan).splitlines()
    assert lines[0].startswith("1, 5 and 20 users, 2 tasks/s each, preset numbers of prod, max")
    assert lines[-1] == "18 measurements of 24 s, in 3 rounds: about 9 min in all"
    opened = make_plan([], Options(rates=(50,), duration_s=6), deployed=[deployed()])
    lines = announcement(opened).splitlines()
    assert lines[0].startswith("open loop, 50 constant arrivals/s, preset numbers of prod")
    assert "web is deployed at https://me:***@x, its database accepts 300 connections" in lines[1]
    assert lines[-1] == "1 measurement of 10 s: about 25 s in all"


def test_the_announcement_has_the_distance_if_there_is_one():
    """Without it the figures cannot be judged, so it comes before them."""
    far = make_plan([target()], Options(distance=Distance.parse("same-az", tls=True)))
    near = make_plan([target()], Options())
    assert "0.5 ms round trip (same-az), TLS" in announcement(far).splitlines()[1]
    assert "distance" not in announcement(near)


# -- options --------------------------------------------------------------------------------


def options(*, quick=False, command="poolkit compare", **given):
    return options_of(given, command=command, quick=quick)


def converted(kind, text):
    return kind.convert(text, None, None)


def test_the_default_is_one_level_of_twenty_users():
    """The quick form has fewer users at the same load."""
    (level,) = options(users=None, rate_per_user=None, thresholds=()).levels
    assert (level.name, level.offered_per_s, level.is_open) == ("20 users", 40, False)
    (quick,) = options(quick=True).levels
    assert (quick.name, quick.offered_per_s) == ("10 users", 40)
    assert options(quick=True, users=(3,)).levels[0].name == "3 users"


def test_levels_are_sorted_from_the_lowest():
    """The order on the command line does not matter."""
    assert converted(USERS, "20,1, 5") == (1, 5, 20)
    rates = options(rates=converted(RATES, "200,50.5"), arrivals="poisson", quick=True).levels
    assert [level.name for level in rates] == ["50.5/s", "200/s"]
    assert {level.arrivals for level in rates} == {"poisson"}


def test_the_ready_users_are_enough_for_tasks_of_a_quarter_of_a_second():
    """Little's law; at least ten, and at most the maximum."""
    few, many = options(rates=(1, 200)).levels
    assert (few.users, many.users, many.max_users) == (10, 50, 2000)
    (level,) = options(rates=(200,), max_users=20).levels
    assert (level.users, level.max_users) == (20, 20)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("--users", text) for text in ("0", "1,-5", "10001", "a,b", "1,,2", "1.5", "5,5")),
        *(("--rates", text) for text in ("0", "50,nan", "inf", "fast", "50,50.0")),
        *(("--rate", text) for text in ("0", "nan", "1001")),
        *(("--duration", text) for text in ("0.5", "nan")),
        *(("--target", text) for text in ("web", "web=", "=https://a.example", "web@=https://a")),
        *(("--repeat", text) for text in ("0", "101")),
        ("--warm-up", "0"),
        ("--arrivals", "x"),
        ("--max-users", "0"),
        ("--max-connections", "5"),
    ],
)
def test_a_wrong_value_is_refused_with_its_option(option, text):
    """Click's own error names the option; the exit status is 2."""
    answer = CliRunner().invoke(main, ["compare", option, text], prog_name="poolkit")
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert f"'{option}'" in answer.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rates": (50,), "users": (5,)}, "--users"),
        ({"rates": (50,), "rate_per_user": 2.0}, "--rate"),
        ({"arrivals": "poisson"}, "--arrivals"),
        ({"max_users": 5}, "--max-users"),
    ],
)
def test_options_of_both_loops_are_refused_together(given, named):
    """An option without effect would mislead."""
    with pytest.raises(ConfigurationError, match=f"^{named} "):
        options(**given)


def test_the_recorded_command_has_no_passwords():
    """The report shows it, and people share reports."""
    command = "poolkit compare --database-url postgresql://me:p:w@db/x --target web=http://a/b"
    assert options(command=command).command == command.replace("p:w", "***")


def test_an_error_about_a_target_has_no_password():
    """A wrong label is named, the password of its URL is not."""
    with pytest.raises(click.BadParameter, match=r"'web@a/b=https://me:\*\*\*@a.example'"):
        converted(DeployedTarget(), "web@a/b=https://me:secret@a.example")


def test_options_have_types_and_defaults():
    """Lists are tuples, and an option that was not given has its default."""
    deployed = converted(DeployedTarget(), "web=http://x")
    given = {"targets": converted(Names(), "a, b"), "deployed": (deployed,), "thresholds": ("t",)}
    assert options(**given, junit=Path("x"), github=False) == Options(**given, junit=Path("x"))


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("postgresql://me@127.0.0.1:5432/x", False),
        ("postgresql://me@[::1]/x", False),
        ("postgresql:///x?host=/run/postgresql", False),
        ("postgresql://me@198.51.100.7/x", True),
        ("postgresql:///x?host=198.51.100.7", True),
    ],
)
def test_a_database_on_another_machine_needs_agreement(url, is_refused):
    """A load on targets that the run starts writes there."""
    check_database_host(url, agreed=True)
    if is_refused:
        with pytest.raises(ConfigurationError, match="--yes-load-this-host"):
            check_database_host(url, agreed=False)
    else:
        check_database_host(url, agreed=False)
