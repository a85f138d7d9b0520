"""Docker Compose itself starts the compose files, on an engine that records what it asks for."""

import re
import shutil

import pytest
import yaml
from infra.compose_engine import Engine, needs_compose
from infra.deployed import INFRA, ROOT

pytestmark = [
    pytest.mark.process,
    needs_compose,
]

FILES = sorted(INFRA.rglob("compose.yaml"))
KIT = INFRA / "compose.yaml"
WITH_HEALTHCHECK = ("poolkit-web", "poolkit-worker", "poolkit-pgbouncer")
PASSWORD = {"POSTGRES_PASSWORD": "not-a-sample-7f3a"}
UP = ("up", "--detach", "--no-build")


@pytest.fixture
def engine(tmp_path):
    # A socket's path has at most 107 bytes.
    with Engine(tmp_path, WITH_HEALTHCHECK) as made:
        yield made


def started(engine, *arguments, **variables):
    answer = engine.compose("--file", KIT, *arguments, *UP, **PASSWORD | variables)
    assert answer.returncode == 0, answer.stderr
    return answer


def test_it_starts_in_the_right_order(engine):
    """The database first, then the migration, and after it what needs the schema."""
    started(engine)
    order = engine.order
    for first, second in (
        *(("postgres", "migrate"), ("postgres", "pgbouncer"), ("migrate", "web")),
        *(("pgbouncer", "web"), ("migrate", "worker"), ("valkey", "worker")),
    ):
        assert order.index(first) < order.index(second)
    assert len(order) == len(set(order)) == 6


def test_it_can_be_started_again(engine):
    """The second `up` keeps every container, and runs the migration once more."""
    started(engine)
    before = dict(engine.containers)
    started(engine)
    assert engine.containers.keys() == before.keys()
    assert engine.of_service("migrate").starts == 2


def test_a_password_that_is_missing_is_named(engine):
    """Nothing is created without it."""
    answer = engine.compose("--file", KIT, *UP)
    assert answer.returncode != 0
    assert "POSTGRES_PASSWORD" in answer.stderr
    assert not engine.containers


def test_a_port_that_is_taken_can_be_changed(engine):
    """Every published port is on the loopback address, is the only one, and follows its variable."""
    ports = {"WEB_PORT": "18000", "GRAFANA_PORT": "13000", "PROMETHEUS_PORT": "19090"}
    started(engine, "--profile", "monitoring", **ports)
    published = [
        (binding["HostIp"], binding["HostPort"])
        for container in engine.containers.values()
        for bindings in (container.host.get("PortBindings") or {}).values()
        for binding in bindings
    ]
    assert sorted(published) == sorted(("127.0.0.1", port) for port in ports.values())


def test_the_secret_reaches_its_file(engine):
    """PgBouncer and PostgreSQL get the password as a file, which any account can read."""
    started(engine)
    for service in ("pgbouncer", "postgres", "migrate"):
        container = engine.of_service(service)
        assert container.files["/run/secrets/database_password"] == PASSWORD["POSTGRES_PASSWORD"]
        # It belongs to root, whatever the service's user.
        assert container.modes["/run/secrets/database_password"] & 0o004
        if service != "migrate":
            assert PASSWORD["POSTGRES_PASSWORD"] not in str(container.environment)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_image_is_built_once(file):
    """Compose builds services at the same time, and two exports of one name collide.

    A service without a build must not ask a registry for an image that another one builds.
    """
    services = yaml.safe_load(file.read_text())["services"].values()
    contexts = {}
    for service in services:
        if "build" in service:
            contexts.setdefault(service["image"], []).append(service["build"])
    for service in services:
        if "build" not in service and service["image"] in contexts:
            assert service["pull_policy"] == "never"
    assert all(len(builds) == 1 for builds in contexts.values())


def test_nothing_depends_on_the_first_start_of_a_volume(engine):
    """A script of /docker-entrypoint-initdb.d runs on an empty volume only."""
    started(engine)
    assert not [path for path in engine.of_service("postgres").files if "initdb.d" in path]


def test_the_load_test_joins_the_network(engine):
    """Its file starts beside the services', whose network it needs."""
    file = INFRA / "loadtest" / "compose.yaml"
    alone = engine.compose("--file", file, *UP, **PASSWORD)
    assert alone.returncode != 0
    assert "poolkit_default" in alone.stderr
    started(engine)
    beside = engine.compose("--file", file, *UP, "--scale", "worker=4", **PASSWORD)
    assert beside.returncode == 0, beside.stderr
    assert engine.order.count("worker") == 1 + 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_read_only_container_gets_a_copied_file(file):
    """Compose copies what comes from a variable or is written in the file, and refuses there."""
    text = yaml.safe_load(file.read_text())
    for name, service in text["services"].items():
        for kind in ("secrets", "configs"):
            for each in service.get(kind, []):
                source = each["source"] if isinstance(each, dict) else each
                declared = text[kind][source]
                assert not service.get("read_only") or "file" in declared, (name, source)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_architecture_is_asked_for(file):
    """The images are built for, and pulled for, the machine that runs them."""
    for service in yaml.safe_load(file.read_text())["services"].values():
        assert "platform" not in service
        assert "platforms" not in (service.get("build") or {})


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_that_are_mounted_exist(file):
    """Docker makes a folder in place of a file that is missing."""
    text = yaml.safe_load(file.read_text())
    for kind in ("secrets", "configs"):
        for each in text.get(kind, {}).values():
            assert "file" not in each or (file.parent / each["file"]).is_file()


def test_a_read_only_container_with_a_copied_secret_is_refused(engine, tmp_path):
    """What the rule above is for: Compose creates everything, and then cannot start PgBouncer."""
    folder = tmp_path / "infra"
    shutil.copytree(INFRA, folder)
    text = (folder / "compose.yaml").read_text()
    once = text.replace("    # Not read_only: Compose", "    read_only: true\n    # Not: Compose")
    assert once != text
    (folder / "compose.yaml").write_text(once)
    answer = engine.compose("--file", folder / "compose.yaml", *UP, **PASSWORD)
    assert answer.returncode != 0
    assert re.search(r"read-only.*pgbouncer|read-only service", answer.stderr), answer.stderr
