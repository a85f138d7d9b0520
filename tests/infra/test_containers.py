"""Images, the compose file and the Kubernetes manifests keep the rules that the templates keep."""

import json
import re

import pytest
import yaml
from infra.deployed import INFRA, ROOT, answer_of, deployment_of, worker_settings
from processes import run
from programs import needs_kubectl

from poolkit.budget.command import compute_budget
from poolkit.budget.files import read_files
from poolkit.budget.kubernetes.renderers import rendered
from poolkit.budget.model import Options
from poolkit.config.settings import Settings

DOCKERFILES = sorted([*INFRA.glob("Dockerfile.*"), INFRA / "pgbouncer" / "Dockerfile"])
OVERLAYS = ("dev", "prod")


# -- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_built_in_two_stages(file):
    """What builds does not run: the last stage copies from the first."""
    text = file.read_text()
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2
    assert "COPY --from=build" in text.rpartition("FROM ")[2]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_install_from_the_lock_alone(file):
    """Every wheel has its hash, and no address of an index is written down."""
    text = file.read_text()
    for command in re.findall(r"pip .*?install(?:.*\\\n)*.*", text):
        assert "--require-hashes" in command
        assert "--only-binary :all:" in command
    assert "index-url" not in text


@pytest.mark.parametrize("file", [f for f in DOCKERFILES if f.suffix != ".lambda"], ids=str)
def test_images_run_as_an_unprivileged_user(file):
    """The account is the one that the task definitions and the manifests name."""
    last = file.read_text().rpartition("FROM ")[2]
    assert "USER 10001" in last
    assert 'VOLUME ["/tmp"]' in last
    assert "HEALTHCHECK" in last


def test_pgbouncers_wheels_are_those_of_the_lock():
    """Its own list pins the versions that the project's lock has."""
    pin = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)
    locked = set(pin.findall((ROOT / "requirements.lock").read_text()))
    own = set(pin.findall((INFRA / "pgbouncer" / "requirements.txt").read_text()))
    assert own
    assert own <= locked


# -- compose --------------------------------------------------------------------------------


@pytest.fixture
def compose():
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def seconds(text):
    return int(text.removesuffix("s"))


def environ_of(service):
    text = {name: str(value) for name, value in service["environment"].items()}
    url = text.get("DATABASE_URL", "")
    return text | ({"DATABASE_URL": re.sub(r"\$\{.*?\}", "generated", url)} if url else {})


def test_compose_has_every_part(compose):
    """Both services, the database, PgBouncer, the broker, and the migration before all."""
    names = {"postgres", "pgbouncer", "valkey", "migrate", "web", "worker"}
    always = {name for name, each in compose["services"].items() if "profiles" not in each}
    assert always == names
    for name in ("web", "worker"):
        assert compose["services"][name]["depends_on"]["migrate"] == {
            "condition": "service_completed_successfully"
        }


def test_compose_has_no_password_of_its_own(compose):
    """The password comes from the shell, and a file without it says so."""
    text = (INFRA / "compose.yaml").read_text()
    with_it = re.findall(r"(?:poolkit|app):\$\{POSTGRES_PASSWORD:\?", text)
    assert len(with_it) == text.count("postgresql://")
    assert compose["secrets"]["database_password"] == {"environment": "POSTGRES_PASSWORD"}


def test_compose_opens_no_port_to_the_network(compose):
    """Only web and the pages of monitoring have a port, and on the loopback address."""
    ports = {name: each["ports"] for name, each in compose["services"].items() if "ports" in each}
    assert set(ports) == {"web", "prometheus", "grafana"}
    for (port,) in ports.values():
        assert re.fullmatch(r"127\.0\.0\.1:\$\{\w+_PORT:-(\d+)\}:\1", port)


@pytest.mark.sample
def test_composes_settings_are_accepted(compose):
    """Web, worker and migration start with what is written; stopping lasts long enough."""
    web, worker = compose["services"]["web"], compose["services"]["worker"]
    for service in (web, worker, compose["services"]["migrate"]):
        Settings.from_environ(environ_of(service))
    graceful = int(environ_of(web)["UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"])
    answered = answer_of(Settings.from_environ(environ_of(web)).preset)
    assert answered <= graceful < seconds(web["stop_grace_period"])
    limit = worker_settings(environ_of(worker)).task_time_limit
    assert limit < seconds(worker["stop_grace_period"])


def written_sum(file):
    """Give the total, max_connections and the reserve that a file's comment comes to."""
    comments = " ".join(re.findall(r"^# (.*)$", file.read_text(), re.MULTILINE))
    return tuple(map(int, re.search(r": (\d+) of (\d+), less (\d+) reserved\.", comments).groups()))


def found_sum(budget):
    return budget.needed, budget.max_connections, budget.database.reserved.value


def test_composes_fleet_fits_its_database():
    """PgBouncer and the worker are within max_connections, and the comment's sum is right."""
    budget = compute_budget(Options(paths=(INFRA / "compose.yaml",))).only
    assert budget.verdict == "fits"
    assert not budget.overloads
    assert found_sum(budget) == written_sum(INFRA / "compose.yaml")


# -- Kubernetes -----------------------------------------------------------------------------


@pytest.fixture(
    params=[pytest.param(each, marks=[pytest.mark.process, needs_kubectl]) for each in OVERLAYS]
)
def manifests(request):
    """The manifests of an overlay, by kind and name."""
    documents, _ = rendered(read_files([INFRA / "kubernetes"]).kubernetes, request.param)
    return {(each.data["kind"], each.data["metadata"]["name"]): each.data for each in documents}


def pods(manifests):
    return {
        name: each["spec"]["template"]["spec"]
        for (kind, name), each in manifests.items()
        if kind in ("Deployment", "StatefulSet", "Job")
    }


def configured(pod):
    """Return the container that has the pod's settings: the migration upgrades, and then waits."""
    (container,) = pod["containers"]
    return pod["initContainers"][0] if container["name"] == "done" else container


def environ_in(manifests, pod):
    """What a container gets: ConfigMaps, and its own variables over them."""
    container = configured(pod)
    found = {}
    for source in container.get("envFrom", []):
        found |= manifests["ConfigMap", source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: str(each["value"]) for each in container["env"]}


def test_pods_are_restricted(manifests):
    """No root, no capability, no writable root, no token of the cluster's API; limits for all."""
    for pod in pods(manifests).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_no_manifest_holds_a_secret(manifests):
    """Pods read the password from Secrets Manager by the role of their account."""
    assert not [name for kind, name in manifests if kind == "Secret"]
    for pod in pods(manifests).values():
        environ = environ_in(manifests, pod)
        assert environ["DATABASE_SECRET_ARN"].startswith("arn:aws:secretsmanager:")
        assert not [name for name in environ if re.search(r"PASSWORD|TOKEN|DATABASE_URL", name)]


@pytest.mark.sample
def test_manifests_settings_are_accepted(manifests):
    """What a pod is given is what its program accepts, TLS included."""
    found = pods(manifests)
    for name in ("web", "worker", "migration"):
        Settings.from_environ(environ_in(manifests, found[name]))
    web, worker = environ_in(manifests, found["web"]), environ_in(manifests, found["worker"])
    worker_settings(worker)
    assert (web["DATABASE_HOST"], web["DATABASE_SSLMODE"]) == ("pgbouncer", "require")
    assert worker["DATABASE_SSLMODE"] == "verify-full"


def test_only_its_clients_reach_pgbouncer(manifests):
    """The policy admits its clients, and no others."""
    (rule,) = manifests["NetworkPolicy", "pgbouncer"]["spec"]["ingress"]
    let_in = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in rule["from"]}
    found = {name: environ_in(manifests, pod) for name, pod in pods(manifests).items()}
    assert let_in == {n for n, each in found.items() if each.get("DATABASE_HOST") == "pgbouncer"}


@pytest.mark.sample
def test_pods_get_the_time_to_stop(manifests):
    """The grace period covers the pause before SIGTERM and the slowest answer or task."""
    found = pods(manifests)
    web = environ_in(manifests, found["web"])
    (container,) = found["web"]["containers"]
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    graceful = int(web["UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"])
    assert answer_of(Settings.from_environ(web).preset) <= graceful
    assert pause + graceful < found["web"]["terminationGracePeriodSeconds"]
    limit = worker_settings(environ_in(manifests, found["worker"])).task_time_limit
    assert limit < found["worker"]["terminationGracePeriodSeconds"]


def test_a_full_pool_takes_a_pod_out_and_does_not_kill_it(manifests):
    """Readiness asks the database, liveness the process alone."""
    (web,) = pods(manifests)["web"]["containers"]
    assert web["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert web["livenessProbe"]["httpGet"]["path"] == "/healthz"


@pytest.mark.sample
def test_every_check_of_the_worker_asks_whether_it_consumes(manifests, compose):
    """One command and one file everywhere; what restarts a worker is more patient than what only reports."""
    (pod,) = pods(manifests)["worker"]["containers"]
    ecs = deployment_of("prod").container("worker").definition
    image = re.search(r'CMD (\["python".*health.*\])', (INFRA / "Dockerfile.worker").read_text())
    commands = {
        "startup": pod["startupProbe"]["exec"]["command"],
        "readiness": pod["readinessProbe"]["exec"]["command"],
        "liveness": pod["livenessProbe"]["exec"]["command"],
        "compose": compose["services"]["worker"]["healthcheck"]["test"][1:],
        "ecs": ecs["HealthCheck"]["Command"][1:],
        "image": json.loads(image[1]),
    }
    file = environ_in(manifests, pods(manifests)["worker"])["WORKER_READY_FILE"]
    assert file == environ_of(compose["services"]["worker"])["WORKER_READY_FILE"]
    assert f"ENV WORKER_READY_FILE={file}" in (INFRA / "Dockerfile.worker").read_text()
    checked = ["python", "-m", "poolkit.celery.health", file, "--max-age"]
    ages = {name: int(command.pop()) for name, command in commands.items()}
    assert all(command == checked for command in commands.values())
    reporting = {ages.pop(name) for name in ("startup", "readiness", "compose", "image")}
    assert max(reporting) < min(ages.values())


def test_disruptions_are_bounded(manifests):
    """Web, worker and PgBouncer lose one pod at a time; web and worker scale between bounds."""
    for name in ("web", "worker", "pgbouncer"):
        assert manifests["PodDisruptionBudget", name]["spec"]["maxUnavailable"] == 1
        strategy = manifests["Deployment", name]["spec"]["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 1, "maxUnavailable": 0}
    for name in ("web", "worker"):
        assert "replicas" not in manifests["Deployment", name]["spec"]
        bounds = manifests["HorizontalPodAutoscaler", name]["spec"]
        assert 1 <= bounds["minReplicas"] <= bounds["maxReplicas"]


@pytest.mark.process
@needs_kubectl
@pytest.mark.parametrize(("overlay", "most"), [("dev", 70), ("prod", 800)])
def test_the_pods_fit_the_database(overlay, most):
    """An overlay's ceiling is within max_connections of its environment, as its comment says."""
    folder = INFRA / "kubernetes"
    options = Options(paths=(folder,), environment=overlay, max_connections=most, reserve=5)
    budget = compute_budget(options).only
    assert budget.verdict == "fits"
    assert not budget.overloads
    assert found_sum(budget) == written_sum(folder / "overlays" / overlay / "kustomization.yaml")
    toml = (INFRA / "environments" / f"{overlay}.toml").read_text()
    assert f"MaxConnections = {most}\n" in toml


@pytest.mark.process
@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_sets_image_and_namespace(overlay):
    """Kustomize renders every resource, with the overlay's image in it."""
    answer = run("kubectl", "kustomize", INFRA / "kubernetes" / "overlays" / overlay)
    assert answer.returncode == 0, answer.stderr
    made = list(yaml.safe_load_all(answer.stdout))
    images = {
        container["image"]
        for each in made
        if each["kind"] == "Deployment"
        for part in ("containers", "initContainers")
        for container in each["spec"]["template"]["spec"].get(part, [])
    }
    assert all(image.startswith("000000000000.dkr.ecr.") for image in images)
    assert {each["metadata"].get("namespace", "poolkit") for each in made} == {"poolkit"}
