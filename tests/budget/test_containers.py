"""Compose files, Kubernetes manifests and Kustomize, each with the ceiling computed by hand."""

import pytest
from programs import needs_kubectl

from poolkit.errors import TemplateError

COMPOSE = """
    services:
      db:
        image: postgres:17
        command: postgres -c max_connections=200
      web:
        image: example.org/web
        command: gunicorn app:app --workers 2
        environment:
          DATABASE_URL: postgresql://app:${PASSWORD}@%(host)s:5432/app
        deploy: {replicas: 4}
      worker:
        build: .
        command: [celery, -A, app, worker, --concurrency, "${TASKS:-8}"]
        environment: [DATABASE_URL=postgresql://app@db/app]
      redis: {image: valkey/valkey:8}
"""

DEPLOY = "        deploy: {replicas: 4}"

DEPLOYMENT = """
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web}
    spec:
      replicas: 3
      template:
        metadata: {labels: {app: web}}
        spec:
          containers:
            - name: web
              image: example.org/web
              envFrom: [{configMapRef: {name: settings}}]
              env:
                - {name: POOLKIT_TARGET, value: web}
                - name: DATABASE_PASSWORD
                  valueFrom: {secretKeyRef: {name: s, key: p}}
    ---
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: settings}
    data: {POOLKIT_ENVIRONMENT: prod, DATABASE_HOST: postgres}
"""
HPA = """
    apiVersion: autoscaling/v2
    kind: HorizontalPodAutoscaler
    metadata: {name: web}
    spec:
      scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
      minReplicas: 2
      maxReplicas: 10
"""


def test_compose_replicas(folder, ceilings):
    """4 replicas x 2 workers x 15, and 8 children x 1, and 4: 132 of 200 less 3."""
    folder.write("compose.yaml", COMPOSE % {"host": "db"})
    budget = folder.budget(services=("web=5+10", "worker=1+0"))
    assert ceilings(budget) == {"web": 120, "worker": 8}
    assert (budget.needed, budget.available, budget.verdict) == (132, 197, "fits")
    assert [each.name for each in budget.not_counted] == ["redis"]


def test_pgbouncer_in_compose_counts_for_its_clients(folder):
    """Its 20 + 5 server connections count; its clients must be within max_client_conn."""
    pooler = """
      pgbouncer:
        image: edoburu/pgbouncer:1.23
        environment: {DATABASE_URL: "postgres://a@db/app", DEFAULT_POOL_SIZE: 20,
                      RESERVE_POOL_SIZE: "5", MAX_CLIENT_CONN: "%s"}
    """
    for limit, verdict in (("100", "does not fit"), ("120", "fits")):
        text = COMPOSE % {"host": "pgbouncer"} + (pooler % limit)[1:]
        folder.write("compose.yaml", text.rstrip())
        budget = folder.budget(services=("web=5+10", "worker=1+0"))
        assert budget.services[0].through == "pgbouncer"
        assert (budget.known, budget.verdict) == (25 + 8 + 4, verdict)


def test_a_service_with_two_ways_counts_directly(folder):
    """With a URL for PgBouncer and one for the server, it may use the direct one only."""
    pooler = """
      pgbouncer:
        image: edoburu/pgbouncer:1.23
        environment: {DATABASE_URL: "postgres://a@db/app", DEFAULT_POOL_SIZE: 20}
    """
    both = "          DIRECT_URL: postgresql://app@db:5432/app\n        deploy: {replicas: 4}"
    text = COMPOSE % {"host": "pgbouncer"} + pooler[1:].rstrip()
    same_name = "          POSTGRES_DB: db\n        deploy: {replicas: 4}"
    for replaced, through in ((DEPLOY, "pgbouncer"), (same_name, "pgbouncer"), (both, "")):
        written = text.replace(DEPLOY, replaced)
        folder.write("compose.yaml", written)
        budget = folder.budget(services=("web=5+10", "worker=1+0"))
        assert budget.services[0].through == through


def test_pgbouncer_by_its_ini_file(folder):
    """Two databases with a forced user are two pools; a wildcard stands for any number."""
    folder.write(
        "compose.yaml",
        """
        services:
          pool:
            image: bitnami/pgbouncer
            volumes: ["./pgbouncer.ini:/etc/pgbouncer/pgbouncer.ini:ro"]
        """,
    )
    ini = "[databases]\na = host=db user=app\nb = host=db user=app\n[pgbouncer]\ndefault_pool_size = 30\n"
    folder.write("pgbouncer.ini", ini)
    assert folder.budget(max_connections=100).needed == 64
    folder.write("pgbouncer.ini", "[databases]\n* = host=db\n[pgbouncer]\ndefault_pool_size = 30\n")
    assert folder.budget(max_connections=100).verdict == "cannot be shown to fit"
    assert folder.budget(max_connections=100, pgbouncer_pools=3).needed == 94


def test_kubernetes_hpa_and_surge(folder, ceilings):
    """(10 pods + 25 % rounded up) x (20 + 10) = 13 x 30."""
    folder.write("web.yaml", DEPLOYMENT)
    folder.write("hpa.yaml", HPA)
    budget = folder.budget(max_connections=500)
    assert ceilings(budget) == {"web": 390}
    assert budget.services[0].steady == 300


@pytest.mark.parametrize(
    ("strategy", "pods"),
    [
        ("{type: Recreate}", 3),
        ("{rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}", 3),
        ("{rollingUpdate: {maxSurge: 2}}", 5),
        ("{rollingUpdate: {maxSurge: 100%}}", 6),
    ],
)
def test_a_rollout_adds_max_surge(folder, ceilings, strategy, pods):
    """maxSurge is a number or a percentage; Recreate stops the old pods first."""
    text = DEPLOYMENT.replace("replicas: 3", f"replicas: 3\n      strategy: {strategy}")
    folder.write("web.yaml", text)
    assert ceilings(folder.budget(max_connections=500)) == {"web": pods * 30}


def test_keda_and_cron_jobs(folder):
    """KEDA's maximum counts; a CronJob has a ceiling only if its runs cannot overlap."""
    folder.write("web.yaml", DEPLOYMENT)
    folder.write(
        "keda.yaml",
        """
        apiVersion: keda.sh/v1alpha1
        kind: ScaledObject
        metadata: {name: web}
        spec: {scaleTargetRef: {name: web}, maxReplicaCount: 8}
        """,
    )
    job = """
        apiVersion: batch/v1
        kind: CronJob
        metadata: {name: nightly}
        spec:
          schedule: "0 3 * * *"
          %s
          jobTemplate:
            spec:
              template:
                spec:
                  containers: [{name: c, image: i, command: [python, run.py], env: [{name: PGHOST, value: x}]}]
    """
    folder.write("job.yaml", job % "")
    open_ended = folder.budget(max_connections=500, services=("nightly=1+0x1",))
    assert [gap.of for gap in open_ended.gaps] == ["nightly"]
    folder.write("job.yaml", job % "concurrencyPolicy: Forbid")
    budget = folder.budget(max_connections=500, services=("nightly=1+0x1",))
    # (8 + 2) x 30 + 1, and 4.
    assert budget.needed == 305


@pytest.mark.process
@needs_kubectl
def test_a_kustomize_overlay_changes_the_numbers(folder, ceilings):
    """The overlay of the environment is rendered: its patches count."""
    folder.write("base/web.yaml", DEPLOYMENT)
    folder.write("base/hpa.yaml", HPA)
    folder.write("base/kustomization.yaml", "resources: [web.yaml, hpa.yaml]\n")
    overlay = """
        resources: [../../base]
        patches:
          - path: pool.yaml
          - target: {kind: HorizontalPodAutoscaler, name: web}
            patch: |-
              - {op: replace, path: /spec/maxReplicas, value: %s}
    """
    pool = """
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: web}
        spec:
          template:
            spec:
              containers:
                - name: web
                  env: [{name: POOLKIT_POOL_SIZE, value: "4"}]
    """
    for name, most in (("prod", 20), ("staging", 4)):
        folder.write(f"overlays/{name}/kustomization.yaml", overlay % most)
        folder.write(f"overlays/{name}/pool.yaml", pool)
    prod = folder.budget(max_connections=900, environment="prod")
    # (20 + 5) x (4 + 10)
    assert ceilings(prod) == {"web": 350}
    # GitHub finds no file by a path with .. in it.
    assert prod.services[0].where.file == str(folder.path / "base/web.yaml")
    assert ceilings(folder.budget("overlays/staging", max_connections=900)) == {"web": 70}
    (unread,) = folder.budget(max_connections=900).unread
    assert "overlays/prod" in unread.reason
    assert "overlays/staging" in unread.reason


def test_a_custom_resource_with_pods_is_unknown(folder):
    """--service gives the number of its pods."""
    text = DEPLOYMENT.replace("kind: Deployment", "kind: Example")
    folder.write("web.yaml", text)
    assert folder.budget(max_connections=500).gaps[0].number == "instances"
    assert folder.budget(max_connections=500, services=("web=5+5x1@4",)).needed == 44


def test_unread_variables_make_the_pool_unknown(folder):
    """A missing ConfigMap could hold any of the numbers."""
    folder.write(
        "web.yaml", DEPLOYMENT.replace("name: settings}\n    data", "name: other}\n    data")
    )
    (gap,) = folder.budget(max_connections=500).gaps
    assert "ConfigMap settings is not in the manifests" in gap.reason


def test_web_with_a_null_pool_is_refused(folder):
    """NullPool limits nothing in a process with many requests at once; it would not start."""
    text = DEPLOYMENT.replace("data: {", "data: {POOLKIT_POOL: 'null', ")
    folder.write("web.yaml", text)
    with pytest.raises(TemplateError, match=r"web\.yaml.* POOLKIT_POOL: pool must be queue"):
        folder.budget(max_connections=500)


def test_the_driver_changes_no_number(folder):
    """A service holds the same number of connections with any driver."""
    folder.write("web.yaml", DEPLOYMENT)
    plain = folder.budget(max_connections=500).needed
    folder.write("web.yaml", DEPLOYMENT.replace("data: {", "data: {POOLKIT_DRIVER: psycopg, "))
    assert folder.budget(max_connections=500).needed == plain


def test_the_migration_is_not_counted_twice(folder, ceilings):
    """A one-off `poolkit db upgrade` is the migration of --migrations, up to its number."""
    service = """
          %s:
            image: example.org/web
            command: python -m poolkit db upgrade
            environment: {POOLKIT_TARGET: script, POOLKIT_ENVIRONMENT: dev, DATABASE_HOST: db}
    """
    folder.write("compose.yaml", "services:\n" + "".join(service % name for name in ("a", "b")))
    for migrations, counted in ((2, {}), (1, {"b": 1}), (0, {"a": 1, "b": 1})):
        budget = folder.budget(max_connections=20, migrations=migrations)
        assert ceilings(budget) == counted
        # Two in any case, and 3 operators.
        assert budget.needed == 5
    assert ceilings(folder.budget(max_connections=20, services=("a=1+0x1",))) == {"a": 1}


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://x/y",
        "postgresql+asyncpg://app@db/app",
        "jdbc:postgresql://db/app",
        "host=db dbname=app",
        "Server=db;Database=app;User Id=app",
        "postgres://app:${PASSWORD}@db/app",
    ],
)
def test_a_database_url_shows_a_client(folder, value):
    """The URL counts under any variable name."""
    service = "services:\n  web: {image: x, environment: {CONNECTION_STRING: '%s'}}\n"
    folder.write("compose.yaml", service % value)
    assert [gap.of for gap in folder.budget(max_connections=20).gaps] == ["web"] * 2
    folder.write("compose.yaml", service % "redis://cache/0")
    assert [each.name for each in folder.budget(max_connections=20).not_counted] == ["web"]


# -- compose files put together -------------------------------------------------------------


BASE = """
    services:
      base:
        image: example.org/web
        command: gunicorn -w 4 app
        env_file: app.env
        environment: [POOLKIT_TARGET=web, POOLKIT_ENVIRONMENT=dev]
"""


@pytest.fixture
def base(folder):
    """A service in another folder, for others to extend."""
    folder.write("common/app.env", "POOLKIT_POOL_SIZE=7\n")
    return folder.write("common/base.yaml", BASE)


def test_a_service_that_extends_another_has_its_variables(folder, ceilings, base):
    """It has those of the other service, with their lines, and its own over them."""
    folder.write(
        "compose.yaml",
        """
        services:
          web:
            extends: {file: common/base.yaml, service: base}
            deploy: {replicas: 2}
          api:
            extends: web
            environment: {POOLKIT_MAX_OVERFLOW: "3"}
            command: [gunicorn, -w, "1", app]
        """,
    )
    budget = folder.budget("compose.yaml", max_connections=500)
    # 2 x 4 x (7 + 10), and 2 x 1 x (7 + 3).
    assert ceilings(budget) == {"web": 136, "api": 20}
    assert str(base) in budget.services[0].max_overflow.origin


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("{file: nowhere.yaml, service: base}", "nowhere.yaml does not exist"),
        ("{file: common/base.yaml, service: other}", "there is no service other to extend"),
        ("web", "service web extends itself"),
        ("[x]", "extends must name a service"),
    ],
)
def test_a_wrong_extends_is_named_with_its_line(folder, base, extends, message):
    """The message has the file and the line."""
    folder.write("compose.yaml", f"services:\n  web: {{image: x, extends: {extends}}}\n")
    with pytest.raises(TemplateError, match=message) as raised:
        folder.budget("compose.yaml", max_connections=500)
    assert ".yaml:" in str(raised.value)
    assert base.is_file()


def test_an_override_beside_the_main_file_is_laid_over_it(folder, ceilings):
    """As `docker compose up` does in that folder; naming the main file leaves it out."""
    variables = "{POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev}"
    main = f"services:\n  web: {{image: x, command: uvicorn a, environment: {variables}}}\n"
    folder.write("compose.yaml", main)
    override = "services:\n  web: {deploy: {replicas: 10}, environment: [POOLKIT_POOL_SIZE=1]}\n"
    file = folder.write("compose.override.yaml", override)
    budget = folder.budget(max_connections=500)
    assert ceilings(budget) == {"web": 110}
    assert budget.services[0].instances.origin == f"{file}:2"
    assert ceilings(folder.budget("compose.yaml", max_connections=500)) == {"web": 15}


def test_a_part_of_another_files_service_is_unknown(folder):
    """Which files `--file` lays over each other is unknown."""
    folder.write("compose.prod.yaml", "services:\n  web: {deploy: {replicas: 10}}\n")
    (gap, *_) = folder.budget(max_connections=500, services=()).gaps[::-1]
    assert "`docker compose config`" in gap.reason


def test_included_files_are_read_once(folder, ceilings):
    """Also if their folder is named."""
    variables = "{POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev}"
    folder.write(
        "compose.yaml", "include: [other/compose.yaml]\nservices: {db: {image: postgres}}\n"
    )
    other = f"services:\n  web: {{image: x, environment: {variables}}}\n"
    folder.write("other/compose.yaml", other)
    for paths in (("compose.yaml",), ()):
        assert ceilings(folder.budget(*paths)) == {"web": 15}


def test_anchors_are_followed(folder, ceilings):
    """A merge key takes the values of the anchor."""
    folder.write(
        "compose.yaml",
        """
        x-app: &app
          image: x
          command: gunicorn -w 2 app
          environment: &variables {POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev}
        services:
          web: {<<: *app, scale: 3}
          api: {<<: *app, environment: {<<: *variables, POOLKIT_POOL_SIZE: "1"}}
        """,
    )
    assert ceilings(folder.budget(max_connections=500)) == {"web": 90, "api": 22}


def test_each_compose_file_is_a_deployment_of_its_own(folder):
    """A name means the service of the same file, and two files of one folder do not add up."""
    text = """
        services:
          db: {image: "postgres:17"}
          web: {image: example.org/web, environment: {DATABASE_URL: postgresql://app@db/app}}
          job: {image: example.org/job, environment: {DB_PASSWORD: secret}}
        """
    folder.write("compose.yaml", text)
    folder.write("staging.compose.yaml", text)
    found = folder.budgets(services=("compose/web=5+0x1", "staging.compose/web=7+0x1"))
    services = {each.database.name: [one.name for one in each.services] for each in found.each}
    assert services == {
        "compose/db": ["compose/web", "compose/job"],
        "staging.compose/db": ["staging.compose/web", "staging.compose/job"],
    }


def test_a_client_of_one_of_several_servers_makes_none_too_small(folder):
    """It may be the other one, so "does not fit" does not follow, and "fits" only if both do."""
    folder.write(
        "compose.yaml",
        """
        services:
          orders: {image: "postgres:17"}
          users: {image: "postgres:17"}
          web: {image: example.org/web, environment: {DATABASE_URL: "postgresql://app@${HOST}/app"}}
        """,
    )
    found = folder.budgets(services=("web=150+0x1",))
    assert {each.verdict for each in found.each} == {"cannot be shown to fit"}
    assert "orders, users" in found.each[0].gaps[0].reason
    assert folder.budgets(services=("web=50+0x1",)).verdict == "fits"


def test_a_client_of_an_ignored_database_is_left_out_with_it(folder, ceilings):
    """The others count for theirs, and all for a given limit if no database is left."""
    folder.write(
        "compose.yaml",
        """
        services:
          orders: {image: "postgres:17"}
          users: {image: "postgres:17"}
          web: {image: example.org/web, environment: {DATABASE_URL: "postgresql://app@orders/app"}}
          sso: {image: example.org/sso, environment: {DATABASE_URL: "postgresql://app@users/app"}}
        """,
    )
    services = ("web=60+0x1", "sso=60+0x1")
    found = folder.budget(services=services, ignored=("users",))
    assert (ceilings(found), found.verdict) == ({"web": 60}, "fits")
    assert [each.name for each in found.not_counted] == ["sso"]
    both = folder.budget(services=services, ignored=("users", "orders"), max_connections=500)
    assert ceilings(both) == {"web": 60, "sso": 60}
