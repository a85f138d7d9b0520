"""The containers of the manifests run: as processes, isolated as their orchestrator would.

Each has the orchestrator's variables, an unprivileged account, a read-only root and the declared
writable folders. Around them are a real PostgreSQL and a real Valkey.
"""

import contextlib
import copy
import dataclasses
import json
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psycopg2
import pytest
import trustme
import yaml
from infra.compose_engine import Engine, needs_compose
from infra.container_machine import NEEDED, Image, Machine
from infra.deployed import INFRA, deployment_of
from infra.orchestrators import Cluster, container_of_compose, container_of_ecs
from poolkit_command import succeeded
from processes import run, run_python, wait_until
from programs import needs_kubectl, needs_pgbouncer, needs_prometheus

from poolkit.local.broker import find_valkey
from poolkit.local.network import Network
from poolkit.local.pgbouncer import find_pgbouncer

pytestmark = [
    pytest.mark.process,
    pytest.mark.sample,
    pytest.mark.timeout(300),
    *NEEDED,
    needs_kubectl,
    needs_pgbouncer,
]

VALKEY = Image(
    variables={"PATH": "/opt/valkey/bin:/usr/bin"},
    working_directory="/data",
    user="999",
    entrypoint=[],
    command=[],
    healthcheck=None,
    volumes=["/data"],
    files={"/opt/valkey/bin/valkey-server": find_valkey()},
)
"""The vendor's image: an account, a folder for the data, and the real server."""
PROMETHEUS = Image({"PATH": "/usr/bin"}, "/prometheus", "65534", ["prometheus"], [], None, [], {})
"""The vendor's image: an account, and Debian's Prometheus."""
CHECKED_WITHOUT_A_CLIENT = {
    "valkey": {"tcpSocket": {"port": 6379}},
    "prometheus": {"httpGet": {"port": 9090, "path": "/-/ready"}},
}
"""In place of valkey-cli and wget, which the vendors' images have."""
RDS_HOST = "poolkit-prod-database.example.eu-central-1.rds.amazonaws.com"
"""The placeholder of overlays/prod."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """What stands for the certificate of RDS, and for the authorities that images are built with."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    issued = authority.issue_cert(RDS_HOST)
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    authority.cert_pem.write_to_path(str(folder / "database-ca.crt"))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory, certificates):
    """The images as their Dockerfiles say, with the folders that `poolkit package` writes."""
    folder = tmp_path_factory.mktemp("images")
    contexts = {name: folder / name for name in ("web", "worker")}
    with ThreadPoolExecutor() as threads:
        packaged = [
            threads.submit(run_python, "-m", "poolkit", "package", name, "--out", context)
            for name, context in contexts.items()
        ]
    for each, context in zip(packaged, contexts.values(), strict=True):
        succeeded(each.result())
        (context / "certificates").mkdir(exist_ok=True)
        shutil.copy(certificates / "database-ca.crt", context / "certificates")
    found = {
        f"poolkit-{name}": Image.read(INFRA / f"Dockerfile.{name}", {"/app": context})
        for name, context in contexts.items()
    }
    program = {
        "/app/pgbouncer/run.py": INFRA / "pgbouncer" / "run.py",
        "/app/pgbouncer/database-ca.crt": certificates / "database-ca.crt",
    }
    found["poolkit-pgbouncer"] = Image.read(INFRA / "pgbouncer" / "Dockerfile", program)
    return found


def render(name, folder):
    """Return the objects of an overlay, with passwords as the local one's head makes them."""
    shutil.copytree(INFRA / "kubernetes", folder, dirs_exist_ok=True)
    for login in ("owner", "application"):
        file = folder / "overlays" / "local" / f"{login}.password"
        file.write_text(secrets.token_hex(16))
    answer = run("kubectl", "kustomize", folder / "overlays" / name)
    assert answer.returncode == 0, answer.stderr
    return list(yaml.safe_load_all(answer.stdout))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, images):
    """The local overlay."""
    objects = render("local", tmp_path_factory.mktemp("kubernetes"))
    return Cluster(objects, images | {"valkey": VALKEY})


@contextlib.contextmanager
def first_start(new_postgres, password):
    """Give a PostgreSQL as the vendor's image leaves it: the owner, and an empty database."""
    with new_postgres() as server:
        with contextlib.closing(psycopg2.connect(server.admin_url("postgres", driver=""))) as admin:
            admin.autocommit = True
            cursor = admin.cursor()
            # The vendor's image makes its owner a superuser; here one exists by that name.
            cursor.execute("ALTER ROLE poolkit SUPERUSER PASSWORD %s", (password,))
            cursor.execute("CREATE DATABASE articles OWNER poolkit")
        yield server


@pytest.fixture(scope="module")
def database(new_postgres, cluster):
    """The database of the local cluster."""
    # Its own image is not here: the server is poolkit's.
    with first_start(new_postgres, cluster.secret("owner")["password"]) as server:
        yield server


@pytest.fixture
def folder():
    return Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")


@pytest.fixture
def machine(database, folder):
    with Machine(folder) as made:
        made.serve("postgres", 5432, (database.host, database.port))
        yield made


def only_what_it_knows(container):
    """Drop a setting that Debian's PgBouncer is too old for; the image's is newer."""
    shown = run(find_pgbouncer(), "--version").stdout
    version = tuple(map(int, re.search(r"(\d+)\.(\d+)", shown).groups()))
    newer = "PGBOUNCER_MAX_PREPARED_STATEMENTS"
    kept = {n: v for n, v in container.variables.items() if n != newer or version >= (1, 21)}
    return dataclasses.replace(container, variables=kept)


def test_the_local_cluster_runs(machine, cluster):
    """Migration, PgBouncer, broker, web and worker: they start, answer every probe, and stop."""
    (valkey,) = cluster.containers("valkey")[1]
    machine.start(dataclasses.replace(valkey, probes={}), "valkey")

    # Before the migration the init container of web waits; it ends once role and schema are there.
    (schema,), (web,) = cluster.containers("web")
    waiting = machine.start(schema)
    (upgrade, role), (done,) = cluster.containers("migration")
    first = machine.start(upgrade)
    assert first.wait() == 0, first.said
    assert "upgraded from empty" in first.said
    made = machine.start(role)
    assert made.wait() == 0, made.said
    assert "created the role app" in made.said
    assert waiting.wait() == 0, waiting.said

    # Once more beside what starts then: it finds nothing to do.
    (pgbouncer,) = cluster.containers("pgbouncer")[1]
    (worker_schema,), (worker,) = cluster.containers("worker")
    running = {
        "pgbouncer": machine.start(only_what_it_knows(pgbouncer), "pgbouncer"),
        "worker": machine.start(worker),
        "done": machine.start(done),
    }
    ends = {
        "already at": machine.start(upgrade),
        "app logs in with a password": machine.start(role),
        "": machine.start(worker_schema),
    }
    assert running["pgbouncer"].becomes_ready() == {}
    running["web"] = machine.start(web, "web")
    for text, each in ends.items():
        assert each.wait() == 0, each.said
        assert text in each.said
        assert "created" not in each.said
    for name in ("web", "worker"):
        assert running[name].becomes_ready() == {}, running[name].said
    assert running["web"].get(8000, "/articles").startswith("{")
    stopped(running)


def stopped(running):
    """Stop containers at the same time, each within its grace period."""
    for each in running.values():
        each.terminate()
    for name, each in running.items():
        assert each.process.wait(each.container.grace_s) in (0, 143), (name, each.said)


def migrated(machine, database, cluster):
    """Run the migration, unless an earlier test of this database did; return its first container."""
    upgrade, role = cluster.containers("migration")[0]
    url = database.admin_url("articles", driver="")
    with contextlib.closing(psycopg2.connect(url)) as admin:
        cursor = admin.cursor()
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'app'")
        if cursor.fetchone() is None:
            for container in (upgrade, role):
                assert machine.start(container).wait() == 0
    return upgrade


def test_an_earlier_version_can_be_deployed_again(machine, database, cluster):
    """After a later version has upgraded the schema, its migration and its check let the pods start."""
    upgrade = migrated(machine, database, cluster)
    url = database.admin_url("articles", driver="")
    with contextlib.closing(psycopg2.connect(url)) as admin:
        admin.autocommit = True
        cursor = admin.cursor()
        cursor.execute("SELECT version_num FROM alembic_version")
        ((known,),) = cursor.fetchall()
        cursor.execute("UPDATE alembic_version SET version_num = 'of-a-later-version'")
        try:
            started = [
                machine.start(container) for container in (upgrade, cluster.containers("web")[0][0])
            ]
            for each in started:
                assert each.wait() == 0, each.said
        finally:
            cursor.execute("UPDATE alembic_version SET version_num = %s", (known,))


@pytest.fixture
def eks(machine, cluster, images, served_aws, tmp_path):
    """The overlay for EKS with its placeholders replaced, and what Pod Identity gives a pod."""
    import boto3

    logins = {
        "replace-owner": ("poolkit", cluster.secret("owner")["password"]),
        "replace-application": ("app", cluster.secret("application")["password"]),
    }
    manager, sqs = boto3.client("secretsmanager"), boto3.client("sqs")
    arns = {
        name: manager.create_secret(
            Name=name, SecretString=json.dumps({"username": user, "password": password})
        )["ARN"]
        for name, (user, password) in logins.items()
    }
    objects = render("prod", tmp_path / "kubernetes")
    queue = sqs.create_queue(QueueName="poolkit-prod-worker")["QueueUrl"]
    served = urlsplit(served_aws["AWS_ENDPOINT_URL"])
    machine.serve("aws", 80, (served.hostname, served.port))
    for each in (each for each in objects if each["kind"] == "ConfigMap"):
        values = each["data"]
        for name in logins:
            for variable in ("DATABASE_SECRET_ARN", "APPLICATION_SECRET_ARN"):
                if values.get(variable, "").endswith(name):
                    values[variable] = arns[name]
        if "WORKER_QUEUE_URL" in values:
            values["WORKER_QUEUE_URL"] = f"http://aws{urlsplit(queue).path}"
    # Credentials, and in place of AWS's own addresses where the services are.
    return Cluster(objects, images), served_aws | {"AWS_ENDPOINT_URL": "http://aws"}


@pytest.mark.slow
def test_the_pods_of_eks_run(eks, machine, database, certificates):
    """Secrets by their ARN, a certificate that is verified, and SQS: as with RDS, for every probe."""
    pods, identity = eks

    def start(container, *names):
        known = dataclasses.replace(container, variables=identity | container.variables)
        return machine.start(known, *names)

    proxy = Network(database.host, database.port, certificate=certificates / "server.pem")
    with proxy as encrypted:
        machine.serve(RDS_HOST, 5432, (encrypted.host, encrypted.port))
        for container in pods.containers("migration")[0]:
            migrated = start(container)
            assert migrated.wait() == 0, migrated.said
        (schema,), (web,) = pods.containers("web")
        assert start(schema).wait() == 0
        (pgbouncer,) = pods.containers("pgbouncer")[1]
        running = [start(only_what_it_knows(pgbouncer), "pgbouncer")]
        assert running[0].becomes_ready() == {}, running[0].said
        running += [start(web, "web"), start(pods.containers("worker")[1][0], "worker")]
        for each in running:
            assert each.becomes_ready() == {}, each.said
        for each in running:
            assert each.stop() in (0, 143), each.said


@pytest.mark.slow
def test_the_tasks_of_ecs_run(eks, machine, database, images, certificates):
    """Migration, web and worker as their task definitions say, healthy for ECS or the load balancer."""
    pods, identity = eks
    settings = {
        name.rpartition("-")[0]: each["data"]
        for (kind, name), each in pods.objects.items()
        if kind == "ConfigMap"
    }
    values = {name: settings["worker"][name] for name in ("WORKER_QUEUE", "WORKER_QUEUE_URL")}
    values |= {"DATABASE_HOST": RDS_HOST}
    prod = deployment_of("prod")
    path = prod.resource("web", "TargetGroup").get("HealthCheckPath")
    balancer = {
        "httpGet": {"port": 8000, "path": path},
        "timeoutSeconds": 5,
        "failureThreshold": 30,
    }

    def start(name, login, probe=None):
        image = images["poolkit-worker" if name == "worker" else "poolkit-web"]
        known = values | {"DATABASE_SECRET_ARN": settings[login]["DATABASE_SECRET_ARN"]}
        container = container_of_ecs(prod.container(name), image, known, probe)
        assert container.writable.keys() == {"/tmp"}
        return machine.start(
            dataclasses.replace(container, variables=identity | container.variables)
        )

    proxy = Network(database.host, database.port, certificate=certificates / "server.pem")
    with proxy as encrypted:
        machine.serve(RDS_HOST, 5432, (encrypted.host, encrypted.port))
        migrated = start("migration", "migration")
        assert migrated.wait() == 0, migrated.said
        running = [start("web", "deployment", balancer), start("worker", "deployment")]
        for each in running:
            assert each.becomes_ready() == {}, each.said
        for each in running:
            assert each.stop() in (0, 143), each.said


@pytest.mark.slow
@needs_compose
@needs_prometheus
def test_the_compose_file_runs(new_postgres, images, folder, tmp_path):
    """What Docker Compose asks an engine for: each container starts, is healthy, and stops.

    Prometheus scrapes web and worker, and answers every query of the alerts and the dashboard.
    """
    with Engine(tmp_path, [name for name, image in images.items() if image.healthcheck]) as engine:
        password = secrets.token_hex(16)
        answer = engine.compose(
            *("--file", INFRA / "compose.yaml", "--profile", "monitoring"),
            *("up", "--detach", "--no-build"),
            POSTGRES_PASSWORD=password,
        )
        assert answer.returncode == 0, answer.stderr
    ours = {each.service: each.request["Image"] for each in engine.containers.values()}
    known = images | {ours["valkey"]: VALKEY, ours["prometheus"]: PROMETHEUS}
    with (
        first_start(new_postgres, password) as server,
        Machine(folder) as machine,
    ):
        machine.serve("postgres", 5432, (server.host, server.port))
        running = {}
        # Prometheus needs the others' names, and Grafana has no package.
        others = [
            each for each in engine.order if each not in ("postgres", "grafana", "prometheus")
        ]
        for service in (*others, "prometheus"):
            container = container_of_compose(engine.of_service(service), known)
            if service in CHECKED_WITHOUT_A_CLIENT:
                probe = CHECKED_WITHOUT_A_CLIENT[service] | {"periodSeconds": 10}
                container = dataclasses.replace(container, probes={"startup": probe})
            if service == "pgbouncer":
                container = only_what_it_knows(container)
            started = machine.start(container)
            if service == "migrate":
                assert started.wait() == 0, started.said
                continue
            assert started.becomes_ready() == {}, started.said
            running[service] = started
        assert running["web"].get(8000, "/articles").startswith("{")
        every_query_is_answered(running)
        for name, each in running.items():
            assert each.stop() in (0, 143), (name, each.said)


def queries():
    """Give the expression of each alert and of each panel."""
    rules = yaml.safe_load((INFRA / "monitoring/rules.yaml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    board = json.loads((INFRA / "monitoring/grafana.json").read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])


def every_query_is_answered(running):
    """Check that the deployables export each metric, and that Prometheus takes each query."""
    pages = running["web"].get(8000, "/metrics") + running["worker"].get(9100, "/metrics")
    exported = set(re.findall(r"^# TYPE (\w+) ", pages, re.MULTILINE))
    for query in queries():
        for name in re.findall(r"\bpoolkit_\w+", query):
            assert {name, re.sub("_(bucket|sum|count)$", "", name)} & exported, name

    def asked(page, **parameters):
        text = running["prometheus"].get(9090, f"/api/v1/{page}?{urlencode(parameters)}")
        return json.loads(text)["data"]

    def are_scraped():
        targets = asked("targets")["activeTargets"]
        return len(targets) == 2 and {each["health"] for each in targets} == {"up"}

    wait_until(are_scraped, timeout_s=150)
    for query in queries():
        asked("query", query=query.replace("$__rate_interval", "1m"))
    for target in ("web", "worker"):
        assert asked("query", query=f'poolkit_pool_size{{target="{target}"}}')["result"], target
    groups = asked("rules")["groups"]
    assert [rule for group in groups for rule in group["rules"] if rule.get("lastError")] == []


# -- what it must notice --------------------------------------------------------------------


def changed(cluster, kind, name, change):
    """Return the cluster with one object changed."""
    objects = copy.deepcopy(cluster.objects)
    change(objects[kind, name])
    return Cluster(objects.values(), cluster.images)


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def test_service_links_that_reach_pgbouncer_are_noticed(machine, cluster):
    """With the links of Kubernetes' default it refuses to start, and names the variable."""
    linked = changed(
        cluster, "Deployment", "pgbouncer", lambda each: pod_of(each).pop("enableServiceLinks")
    )
    (pgbouncer,) = linked.containers("pgbouncer")[1]
    running = machine.start(only_what_it_knows(pgbouncer))
    assert running.wait() == 2
    assert "PGBOUNCER_PORT" in running.said
    assert "enableServiceLinks: false" in running.said


def test_a_folder_that_cannot_be_written_is_noticed(machine, cluster):
    """Without its mount /tmp is part of the read-only root."""

    def unmount(each):
        (container,) = pod_of(each)["containers"]
        kept = [mount for mount in container["volumeMounts"] if mount["name"] != "tmp"]
        container["volumeMounts"] = kept

    unmounted = changed(cluster, "Deployment", "pgbouncer", unmount)
    (pgbouncer,) = unmounted.containers("pgbouncer")[1]
    running = machine.start(only_what_it_knows(pgbouncer))
    assert running.wait() == 2
    assert "mount a writable /tmp" in running.said


def test_a_wrong_path_of_a_probe_is_noticed(machine, database, cluster):
    """The probe's answer is a 404, and the container is not ready."""

    def misspell(each):
        pod_of(each)["containers"][0]["livenessProbe"]["httpGet"]["path"] = "/health"

    (pgbouncer,) = cluster.containers("pgbouncer")[1]
    assert machine.start(only_what_it_knows(pgbouncer), "pgbouncer").becomes_ready() == {}
    migrated(machine, database, cluster)
    (web,) = changed(cluster, "Deployment", "web", misspell).containers("web")[1]
    failed = machine.start(web, "web").becomes_ready()
    assert set(failed) == {"liveness"}
    assert failed["liveness"].startswith("404")
