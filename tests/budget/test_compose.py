"""Compose files: signs of a client, networks, merge tags, interpolation and Dockerfiles."""

import pytest

from poolkit.errors import TemplateError

DB = """
    services:
      db: {image: "postgres:17"}
"""


@pytest.fixture
def counted(folder, ceilings):
    """A function that writes a compose file with a database, and returns the ceilings and the rest."""

    def read(services, **options):
        folder.write("compose.yaml", DB.rstrip() + services)
        budget = folder.budget("compose.yaml", **options)
        return ceilings(budget), [each.name for each in budget.not_counted]

    return read


@pytest.mark.parametrize(
    "service",
    [
        "depends_on: [db]",
        "depends_on: {db: {condition: service_healthy}}",
        'links: ["db:postgres"]',
        "command: run --host db",
        "environment: {TARGET: db}",
        "networks: [default]",
        "network_mode: host",
        'network_mode: "service:db"',
        "secrets: [db_password]",
        "{}",
    ],
)
def test_any_sign_of_the_database_counts(counted, service):
    """A program of an unknown kind that can reach the server may connect to it."""
    keys = "" if service == "{}" else f"\n        {service}"
    assert counted(f"\n      web:\n        image: x/web{keys}\n") == ({"web": None}, [])


@pytest.mark.parametrize(
    "service", ["networks: [front]", "network_mode: none", "network_mode: bridge"]
)
def test_a_service_that_cannot_reach_the_database_is_left_out(counted, service):
    """It shares no network with it, not even if it waits for it."""
    web = f"\n      web:\n        image: x/web\n        depends_on: [db]\n        {service}\n"
    assert counted(web + "    networks: {front: {}}\n") == ({}, ["web"])


def test_two_projects_share_an_external_network(folder, ceilings):
    """A network of a project's own is another one than that of the same name elsewhere."""
    for declared, found in (("{external: true}", {"web": None}), ("{}", {})):
        networks = f"networks: {{back: {declared}}}\n"
        folder.write(
            "a/compose.yaml", f"services:\n  db: {{image: postgres, networks: [back]}}\n{networks}"
        )
        folder.write(
            "b/compose.yaml", f"services:\n  web: {{image: x/web, networks: [back]}}\n{networks}"
        )
        assert ceilings(folder.budget()) == found


def test_known_software_beside_the_database_is_left_out(counted):
    """Valkey and nginx connect to no database, also if nginx waits for it."""
    services = """
      cache: {image: "valkey/valkey:8"}
      proxy: {image: "nginx:1.29", depends_on: [db], environment: {DATABASE_URL: "postgres://db/a"}}
      broker: {image: x/broker, environment: {BROKER_DB_PATH: /data/broker.sqlite}}
    """
    assert counted(services) == ({}, ["cache", "proxy", "broker"])


def test_a_store_beside_the_database_does_not_hide_a_client(counted):
    """A worker with its results in Redis may still use the database."""
    services = """
      web: {image: x/web, environment: {RESULT_BACKEND: "redis://r"}, depends_on: [db]}
      worker: {image: x/web, environment: [RESULT_BACKEND=redis://r]}
      own: {image: x/own, environment: {STATE_DB_PATH: /s.sqlite}, depends_on: [db]}
    """
    assert counted(services)[0] == {"web": None, "worker": None, "own": None}


def test_override_replaces_and_reset_removes(folder, ceilings):
    """In a file of its own and in one that is laid over another."""
    folder.write(
        "compose.yaml",
        """
        services:
          db: {image: "postgres:17"}
          web:
            image: x/web
            command: uvicorn app:app --workers 20
            volumes: !override ["./a:/a"]
            environment: !override {DB_HOST: db, POOL: "1"}
          old: {image: x/old, depends_on: [db]}
        """,
    )
    assert ceilings(folder.budget("compose.yaml", services=("web=1+0", "old=1+0x1"))) == {
        "web": 20,
        "old": 1,
    }
    folder.write(
        "compose.override.yaml",
        """
        services:
          web:
            command: !reset null
            environment: !override {DB_HOST: db, WEB_CONCURRENCY: "3"}
          old: !reset null
        """,
    )
    assert ceilings(folder.budget(services=("web=1+0",))) == {"web": 3}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("${N}", 7),
        ("$N", 7),
        ("${N:-2}", 7),
        ("${OTHER:-2}", 2),
        ("${OTHER-${N}}", 7),
        ("${OTHER:-${MORE:-4}}", 4),
        ("${N:?must be set}", 7),
        ("${N:+5}", 5),
        ("${OTHER:?must be set}", None),
    ],
)
def test_interpolation(folder, text, number):
    """A default may hold another variable."""
    folder.write(".env", "N=7\n")
    folder.write(
        "compose.yaml",
        f"services:\n  web: {{image: x, scale: '{text}', environment: {{PGHOST: x}}}}\n",
    )
    (web,) = folder.budget(max_connections=100).services
    assert web.instances.value == number


def test_a_doubled_dollar_is_no_variable(folder):
    """The value reaches the container with one."""
    folder.write(
        "compose.yaml",
        "services:\n  web: {image: x, command: 'gunicorn -w $$WORKERS a', environment: {PGHOST: x, WORKERS: 3}}\n",
    )
    assert folder.budget(max_connections=100).services[0].processes.value == 3


def test_a_doubled_dollar_in_a_variable_is_filled_in_once(folder):
    """The text `${N:-4}` is left, which is no number."""
    variables = '{PGHOST: x, WEB_CONCURRENCY: "$${N:-4}"}'
    text = f"services:\n  web: {{image: x, command: uvicorn a, environment: {variables}}}\n"
    folder.write("compose.yaml", text)
    gaps = folder.budget(max_connections=100).gaps
    assert "processes" in [gap.number for gap in gaps]


def test_relative_paths_belong_to_their_file(folder, ceilings):
    """Those of an included file to its folder, or to its project_directory."""
    folder.write(
        "compose.yaml", "include: [{path: sub/a.yaml}, {path: sub/b.yaml, project_directory: .}]\n"
    )
    service = "services:\n  {0}: {{image: x, command: gunicorn a, env_file: own.env}}\n"
    folder.write("sub/a.yaml", service.format("a"))
    folder.write("sub/b.yaml", service.format("b"))
    folder.write("sub/own.env", "PGHOST=x\nWEB_CONCURRENCY=2\n")
    folder.write("own.env", "PGHOST=x\nWEB_CONCURRENCY=5\n")
    budget = folder.budget("compose.yaml", max_connections=100, services=("a=1+0", "b=1+0"))
    assert ceilings(budget) == {"a": 2, "b": 5}


def test_a_remote_include_is_reported(folder):
    """It may hold services, and the reader uses no network."""
    folder.write(
        "compose.yaml",
        "include: ['oci://registry.example/app']\nservices: {web: {image: x, environment: {PGHOST: x}}}\n",
    )
    budget = folder.budget(max_connections=100, services=("web=1+0x1",))
    assert budget.verdict == "cannot be shown to fit"


@pytest.mark.parametrize(
    "service",
    [
        "{image: x, environment: , depends_on: , networks: , command: }",
        "{image: x, scale: '2', environment: {A: 1, B: true, C: 1.5, D: }}",
        "{build: ., deploy: , volumes: [{type: tmpfs, target: /t}], configs: [c], secrets: []}",
        "{image: '${IMAGE}', ports: [80, '443:443'], env_file: [{path: a.env, required: false}]}",
        "{build: {context: 'https://github.com/x/y.git#main'}, entrypoint: ''}",
        "{image: x, deploy: {mode: replicated-job, replicas: 2}, profiles: [tools]}",
    ],
)
def test_what_compose_accepts_is_read(folder, service):
    """Numbers as texts, values without content, lists and mappings."""
    folder.write("compose.yaml", f"services:\n  db: {{image: postgres}}\n  web: {service}\n")
    assert [each.name for each in folder.budget().services] == ["web"]


def test_several_documents_of_a_file_are_one_project(folder, ceilings):
    """Compose merges them."""
    folder.write(
        "compose.yaml",
        "services: {db: {image: postgres}, a: {image: x}}\n---\nservices: {b: {image: x}, a: {scale: 2}}\n",
    )
    budget = folder.budget(services=("a=3+0x1",))
    assert ceilings(budget) == {"a": 6, "b": None}


def test_a_mounted_folder_of_configuration_is_read(folder):
    """MySQL's image reads conf.d."""
    folder.write("conf.d/limits.cnf", "[mysqld]\nmax_connections=400\n")
    folder.write(
        "compose.yaml",
        "services: {db: {image: 'mysql:8', volumes: ['./conf.d:/etc/mysql/conf.d:ro']}}\n",
    )
    assert folder.budget().database.max_connections.value == 400


# -- Dockerfiles ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dockerfile", "processes"),
    [
        ('FROM python\nCMD ["gunicorn", "-w", "3", "app"]', 3),
        ("FROM python\nCMD gunicorn -w 3 app", 3),
        ("FROM python\nENTRYPOINT exec gunicorn -w 3 app\nCMD ignored", 3),
        ('FROM python\nENTRYPOINT ["tini", "--"]\nCMD ["gunicorn", "-w", "3", "app"]', 3),
        ('FROM python AS base\nCMD ["gunicorn", "-w", "3", "app"]\nFROM node\nFROM base', 3),
        ("FROM python\nENV WEB_CONCURRENCY=3\nCMD gunicorn app", 3),
        ("FROM python\nENV WEB_CONCURRENCY 3\nCMD gunicorn app", 3),
        ("FROM python\nARG N=3\nENV WEB_CONCURRENCY=$N A=b\nCMD gunicorn app", 3),
        (
            "FROM python\nRUN <<EOF\nCMD gunicorn -w 9 app\nEOF\nCMD gunicorn \\\n  # three\n  -w 3 app",
            3,
        ),
        ('FROM python\nCMD ["gunicorn", "-w", "9", "a"]\nFROM python\nCOPY . .', None),
        ("FROM python\nCMD ./start.sh", None),
    ],
)
def test_the_last_stage_of_a_dockerfile_decides_the_processes(folder, dockerfile, processes):
    """In both forms of CMD and ENTRYPOINT."""
    folder.write("web/Dockerfile", dockerfile + "\n")
    folder.write("compose.yaml", "services:\n  db: {image: postgres}\n  web: {build: web}\n")
    (web,) = folder.budget().services
    assert web.processes.value == processes
    if processes:
        assert "Dockerfile:" in web.processes.origin


def test_compose_overrides_the_dockerfile(folder, ceilings):
    """Its command replaces CMD, its entrypoint both, and its environment wins."""
    folder.write(
        "app.Dockerfile",
        """
        ARG BASE=python
        FROM ${BASE} AS dev
        ENTRYPOINT ["gunicorn", "app"]
        CMD ["-w", "9"]
        FROM dev
        CMD ["-w", "8"]
        """,
    )
    build = "build: {dockerfile: app.Dockerfile, args: {BASE: nginx}%s}"
    folder.write(
        "compose.yaml",
        f"""
        services:
          db: {{image: postgres}}
          a: {{{build % ", target: dev"}}}
          b: {{{build % ""}}}
          c: {{{build % ""}, command: [-w, "2"]}}
          d: {{{build % ""}, entrypoint: uvicorn a}}
        """,
    )
    services = [f"{name}=1+0" for name in "abcd"]
    assert ceilings(folder.budget(services=services)) == {"a": 9, "b": 8, "c": 2, "d": 1}


def test_an_image_that_is_built_from_a_server_or_a_proxy(folder, ceilings):
    """FROM postgres is a server, and FROM nginx connects to no database."""
    folder.write("db/Dockerfile", "FROM postgres:17\nCMD [postgres, -c, max_connections=300]\n")
    folder.write("db/Dockerfile", 'FROM postgres:17\nCMD ["postgres", "-N", "300"]\n')
    folder.write(
        "site/Dockerfile", "FROM node AS build\nCMD node x\nFROM nginx:1\nCOPY --from=build a b\n"
    )
    folder.write("compose.yaml", "services:\n  db: {build: db}\n  site: {build: {context: site}}\n")
    budget = folder.budget()
    assert (budget.database.max_connections.value, ceilings(budget)) == (300, {})


def test_a_service_that_is_no_mapping_is_named(folder):
    """Compose refuses it too."""
    folder.write("compose.yaml", "services:\n  a: {image: x}\n  web: 3\n")
    with pytest.raises(TemplateError, match=r"compose\.yaml:3: service web must be a mapping"):
        folder.budget("compose.yaml", max_connections=9)
