"""Kubernetes manifests: lists, sidecars, namespaces, custom resources."""

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from programs import needs_helm, needs_kubectl

from poolkit.budget.command import compute_budget
from poolkit.budget.kubernetes import renderers
from poolkit.budget.kubernetes.objects import fields
from poolkit.budget.kubernetes.workloads import describe_manifests
from poolkit.budget.model import Options
from poolkit.budget.read.documents import Document
from poolkit.errors import BudgetError

pytestmark = pytest.mark.process

WEB = yaml.safe_load("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: a}
spec:
  replicas: 6
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: example.org/web
          command: [gunicorn, app, --workers, "4"]
          env: [{name: DATABASE_HOST, value: db}]
""")


def changed(document=WEB, **changes):
    """Return a copy of a manifest with other values, by their path."""
    found = json.loads(json.dumps(document))
    for way, value in changes.items():
        *steps, last = way.split("__")
        parent = found
        for step in steps:
            parent = parent.setdefault(step, {})
        parent[last] = value
    return found


def write(folder, *documents, name="web.yaml"):
    return folder.write(name, yaml.safe_dump_all(documents))


def test_a_list_is_its_items(folder, ceilings):
    """The output of `kubectl get -o yaml` is read; each number names its own line."""
    text = yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [WEB]})
    file = folder.write("live.yaml", text)
    budget = folder.budget(max_connections=400, services=("web=5+10",))
    assert (ceilings(budget), budget.verdict) == ({"web": 360}, "fits")
    line = next(n for n, each in enumerate(text.splitlines(), 1) if "replicas" in each)
    assert budget.services[0].instances.origin == f"{file}:{line}"


def test_the_items_of_a_deployment_list_are_deployments(folder, ceilings):
    """The API's own lists leave out the kind of their items."""
    item = {key: value for key, value in WEB.items() if key not in ("kind", "apiVersion")}
    write(folder, {"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [item]})
    assert ceilings(folder.budget(max_connections=400, services=("web=1+0",))) == {"web": 24}


def test_objects_of_a_deployment_are_not_counted_again(folder, ceilings):
    """`kubectl get all` lists the Deployment, its ReplicaSets and their pods."""
    owner = [{"kind": "Deployment", "name": "web", "controller": True}]
    replicas = changed(kind="ReplicaSet", metadata__name="web-1", metadata__ownerReferences=owner)
    write(folder, WEB, replicas)
    assert ceilings(folder.budget(max_connections=400, services=("web=1+0",))) == {"web": 24}


def test_a_sidecar_is_counted_and_an_init_container_is_listed(folder, ceilings):
    """An init container that is always restarted runs as long as the others."""
    inits = [
        {"name": "proxy", "image": "x", "restartPolicy": "Always", "env": [{"name": "PGHOST"}]},
        {"name": "wait", "image": "postgres:17", "command": ["pg_isready"]},
    ]
    write(folder, changed(spec__template__spec__initContainers=inits))
    services = ("web/web=1+0", "web/proxy=2+0x1")
    budget = folder.budget(max_connections=400, services=services)
    assert ceilings(budget) == {"web/web": 24, "web/proxy": 12}
    assert [each.name for each in budget.not_counted] == ["web/wait"]


@pytest.mark.parametrize(
    ("namespace", "most", "pods"), [("a", 2, 2), ("b", 2, 6), ("b", 20, 6), ("a", 20, 20)]
)
def test_an_autoscaler_scales_its_own_namespace(folder, ceilings, namespace, most, pods):
    """It does not scale a Deployment of the same name in another namespace."""
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": most},
    }
    write(folder, WEB, scaler)
    budget = folder.budget(max_connections=400, services=("web=1+0x1",))
    assert ceilings(budget) == {"web": pods}


def test_config_maps_of_one_name_differ_by_namespace(folder):
    """Two in one namespace are unknown."""
    env = [{"configMapRef": {"name": "settings"}}]
    web = changed()
    web["spec"]["template"]["spec"]["containers"][0]["envFrom"] = env

    def settings(namespace, size):
        data = {"POOLKIT_TARGET": "web", "POOLKIT_ENVIRONMENT": "prod", "POOLKIT_POOL_SIZE": size}
        metadata = {"name": "settings", "namespace": namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}

    write(folder, web, settings("a", "3"), settings("b", "4"))
    (service,) = folder.budget(max_connections=4000).services
    assert service.pool_size.value == 3
    write(folder, web, settings("a", "3"), settings("a", "4"))
    (gap,) = folder.budget(max_connections=4000).gaps
    assert "ConfigMap settings is not in the manifests, or more than once" in gap.reason


def test_pods_of_custom_resources_are_found_anywhere(folder):
    """The number of a queue's jobs (KEDA) and of a workflow's steps (Argo) is unknown."""
    spec = WEB["spec"]["template"]["spec"]
    scaled_job = {"jobTargetRef": {"template": {"spec": spec}}, "maxReplicaCount": 100}
    workflow = {"templates": [{"name": "step", "container": spec["containers"][0]}]}
    for kind, content in (("ScaledJob", scaled_job), ("Workflow", workflow)):
        custom = {"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "x"}}
        write(folder, custom | {"spec": content})
        budget = folder.budget(max_connections=400, services=("x=1+0",))
        assert [(gap.of, gap.number) for gap in budget.gaps] == [("x", "instances")]
        assert budget.verdict == "cannot be shown to fit"


def test_a_rollout_runs_a_deployments_pods(folder):
    """The replicas of the Deployment do not tell the number of pods."""
    rollout = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": "web", "namespace": "a"},
        "spec": {"replicas": 50, "workloadRef": {"kind": "Deployment", "name": "web"}},
    }
    write(folder, changed(spec__replicas=0), rollout)
    (gap,) = folder.budget(max_connections=400, services=("web=5+10",)).gaps
    assert "Rollout web runs its pods" in gap.reason


@needs_kubectl
@pytest.mark.parametrize(("behavior", "size"), [("merge", 3), ("replace", 20)])
def test_a_generated_config_map_over_another(folder, behavior, size):
    """`merge` keeps the keys of the base, `replace` does not; an env file is read too."""
    web = changed()
    del web["metadata"]["namespace"]
    web["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [
        {"configMapRef": {"name": "settings"}}
    ]
    write(folder, web, name="base/web.yaml")
    folder.write("base/pool.env", "# numbers\nPOOLKIT_POOL_SIZE=3\n")
    folder.write(
        "base/kustomization.yaml",
        "resources: [web.yaml]\nconfigMapGenerator: [{name: settings, envs: [pool.env]}]\n",
    )
    literals = "[POOLKIT_TARGET=web, POOLKIT_ENVIRONMENT=prod]"
    folder.write(
        "prod/kustomization.yaml",
        "resources: [../base]\n"
        f"configMapGenerator: [{{name: settings, behavior: {behavior}, literals: {literals}}}]\n",
    )
    (service,) = folder.budget(max_connections=4000).services
    assert service.pool_size.value == size


def test_a_secret_may_hold_the_databases_url(folder):
    """The variables of a Secret outside the manifests are unknown, and so is the verdict."""
    web = changed()
    (container,) = web["spec"]["template"]["spec"]["containers"]
    container["env"], container["envFrom"] = [], [{"secretRef": {"name": "app"}}]
    write(folder, web)
    budget = folder.budget(max_connections=400)
    assert budget.verdict == "cannot be shown to fit"
    assert "--ignore web" in budget.gaps[0].reason
    assert folder.budget(max_connections=400, ignored=("web",)).verdict == "nothing to count"
    for name, verdict in (
        ("PGPASSWORD", "cannot be shown to fit"),
        ("MAIL_KEY", "nothing to count"),
    ):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "app"}}
        write(folder, web, {**secret, "stringData": {name: "x"}})
        assert folder.budget(max_connections=400).verdict == verdict


def test_generated_manifests_leave_the_verdict_open(folder):
    """The objects of releases of Flux are in no file."""
    release = {"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease"}
    write(folder, {**release, "metadata": {"name": "x"}}, name="release.yaml")
    budget = folder.budget(max_connections=400)
    (unread,) = budget.unread
    assert "HelmRelease" in unread.reason
    assert budget.verdict == "cannot be shown to fit"


def test_a_stateful_set_is_scaled_by_keda_too(folder, ceilings):
    """By its kind and name; it adds no pods in a rollout."""
    scaler = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "s"},
        "spec": {"scaleTargetRef": {"kind": "StatefulSet", "name": "web"}, "maxReplicaCount": 12},
    }
    write(folder, changed(kind="StatefulSet"), scaler)
    assert ceilings(folder.budget(max_connections=400, services=("web=1+0",))) == {"web": 48}


def test_pods_on_every_node_are_unknown(folder):
    """--service gives the number of a DaemonSet's pods."""
    write(folder, changed(kind="DaemonSet"))
    (gap,) = folder.budget(max_connections=400, services=("web=1+0",)).gaps
    assert gap.number == "instances"
    assert folder.budget(max_connections=400, services=("web=1+0x1@9",)).needed == 13


# -- renderers ------------------------------------------------------------------------------

BASE = "resources: [web.yaml]\n"


def program(folder, monkeypatch, name, script):
    """Put a shell script on PATH in place of a renderer; it finds no other program there."""
    file = folder.write(f"bin/{name}", f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(file.parent))


def test_without_kubectl_a_kustomization_stays_unread(folder, monkeypatch):
    """What Kustomize would make of the files is unknown, and so is the verdict."""
    write(folder, WEB, name="app/web.yaml")
    file = folder.write("app/kustomization.yaml", BASE)
    monkeypatch.setenv("PATH", "")
    budget = folder.budget("app", max_connections=400)
    (unread,) = budget.unread
    assert (unread.where.file, budget.services) == (str(file), ())
    assert "kubectl kustomize" in unread.reason
    assert budget.verdict == "cannot be shown to fit"


@needs_kubectl
def test_a_kustomization_that_kustomize_refuses(folder, ceilings):
    """It ends the run if it was named; in a folder, the other files are still counted."""
    write(folder, WEB, name="web.yaml")
    file = folder.write("broken/kustomization.yaml", "resources: [missing.yaml]\n")
    budget = folder.budget(max_connections=400, services=("web=1+0x1",))
    assert ceilings(budget) == {"web": 6}
    assert [str(each.where.file) for each in budget.unread] == [str(file)]
    with pytest.raises(BudgetError, match=r"missing\.yaml"):
        folder.budget("broken", max_connections=400)


@needs_kubectl
def test_overlays_of_one_base_exclude_each_other(folder, ceilings):
    """One of them is deployed; manifests beside them count all the same."""
    write(folder, changed(metadata__name="other"), name="other.yaml")
    write(folder, WEB, name="base/web.yaml")
    folder.write("base/kustomization.yaml", BASE)
    for name, count in (("prod", 9), ("dev", 1)):
        replicas = f"replicas: [{{name: web, count: {count}}}]\n"
        folder.write(f"overlays/{name}/kustomization.yaml", "resources: [../../base]\n" + replicas)
    services = ("other=1+0x1",)
    budget = folder.budget(max_connections=400, services=services)
    (unread,) = budget.unread
    assert ceilings(budget) == {"other": 6}
    assert "overlays/dev" in unread.reason
    assert "overlays/prod" in unread.reason
    services += ("web=1+0x1",)
    for named in ({"environment": "prod"}, {}):
        paths = () if named else ("other.yaml", "overlays/prod")
        budget = folder.budget(*paths, max_connections=400, services=services, **named)
        assert ceilings(budget) == {"web": 9, "other": 6}
        assert not budget.unread
    both = folder.budget("overlays/prod", "overlays/dev", max_connections=400)
    # Of one object's versions, the larger one counts.
    assert [each.instances.value for each in both.services] == [9]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("resources:\n  - https://github.com/example/app//base?ref=v1\n", 2),
        ("resources: []\nhelmCharts:\n  - {name: x}\n", 2),
        ("components:\n  - github.com/example/app\n", 2),
    ],
)
def test_what_is_elsewhere_is_not_fetched(folder, monkeypatch, text, line):
    """A remote base or chart is reported with its line, and nothing is started."""
    file = folder.write("kustomization.yaml", text)
    program(folder, monkeypatch, "kubectl", "exit 9")
    (unread,) = folder.budget(file, max_connections=400).unread
    assert (unread.where.file, unread.where.line) == (str(file), line)


def test_a_renderer_has_no_network_and_no_other_programs(folder, monkeypatch):
    """Git cannot be found, proxies are closed, and its home is empty and temporary."""
    folder.write("kustomization.yaml", "resources: []\n")
    folder.write("other/kustomization.yaml", "resources: []\n")
    monkeypatch.setenv("SECRET_TOKEN", "leaked")
    show = 'echo "error: [$PATH] $HTTPS_PROXY $SECRET_TOKEN $HOME" >&2; exit 1'
    program(folder, monkeypatch, "kubectl", show)
    with pytest.raises(BudgetError) as refusal:
        folder.budget(max_connections=400)
    words = str(refusal.value).split()
    assert words[-3:-1] == ["[]", "http://127.0.0.1:1"]
    assert not Path(words[-1]).exists()


def test_a_renderer_that_hangs_is_ended(folder, monkeypatch):
    """With everything that it started, and the run goes on."""
    folder.write("app/kustomization.yaml", "resources: []\n")
    monkeypatch.setattr(renderers, "_LONGEST_SECONDS", 0.2)
    sleep = shutil.which("sleep")
    program(folder, monkeypatch, "kubectl", f"{sleep} 600")
    started = time.monotonic()
    (unread,) = folder.budget(max_connections=400).unread
    assert "took more than" in unread.reason
    assert time.monotonic() - started < 10


CHART = """
    apiVersion: v2
    name: shop
    version: 1.0.0
"""
TEMPLATE = """
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web}
    spec:
      replicas: {{ .Values.replicas }}
      strategy: {type: Recreate}
      template:
        metadata: {labels: {app: web}}
        spec:
          containers:
            - name: web
              image: example.org/web
              env: [{name: PGHOST, value: db}]
"""
# The form of `helm template`: a line with the source before each document.
STAND_IN = """
replicas=2
case "$*" in *values-prod.yaml*) replicas=8;; esac
while read -r line; do echo "$line"; done <<END
---
# Source: shop/templates/web.yaml
{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
"replicas": $replicas, "strategy": {"type": "Recreate"}, "template": {"spec": {"containers": [
{"name": "web", "image": "x", "env": [{"name": "PGHOST", "value": "db"}]}]}}}}
---
# Source: shop/templates/tests/ping.yaml
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ping", "annotations":
{"helm.sh/hook": "test"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}
END
"""


@pytest.mark.parametrize("is_real", [pytest.param(True, marks=needs_helm), False])
def test_a_chart_is_rendered_by_helm(folder, ceilings, monkeypatch, is_real):
    """With the environment's values; each object has the file of its template."""
    folder.write("shop/Chart.yaml", CHART)
    folder.write("shop/values.yaml", "replicas: 2\n")
    folder.write("shop/values-prod.yaml", "replicas: 8\n")
    file = folder.write("shop/templates/web.yaml", TEMPLATE)
    if not is_real:
        program(folder, monkeypatch, "helm", STAND_IN)
    for environment, pods in (("", 2), ("prod", 8)):
        budget = folder.budget(
            "shop", max_connections=400, services=("web=1+0x1",), environment=environment
        )
        assert ceilings(budget) == {"web": pods}
        assert budget.services[0].where.file == str(file)
        assert not budget.unread
    folder.write("shop/templates/web.yaml", "{{ required `no` .Values.none }}")
    if is_real:
        (unread,) = folder.budget("shop", max_connections=400).unread
        assert "helm template" in unread.reason


def test_without_helm_a_chart_stays_unread(folder, monkeypatch):
    """Its templates are no YAML, and are not parsed."""
    folder.write("shop/Chart.yaml", CHART)
    folder.write("shop/templates/web.yaml", TEMPLATE)
    monkeypatch.setenv("PATH", "")
    budget = folder.budget(max_connections=400)
    (unread,) = budget.unread
    assert "helm template" in unread.reason
    assert budget.verdict == "cannot be shown to fit"


# -- signs ----------------------------------------------------------------------------------

DB = yaml.safe_load("""
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: server, namespace: a}
spec:
  serviceName: db
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
        - name: postgres
          image: postgres:17
          env:
            - name: POSTGRES_PASSWORD
              valueFrom: {secretKeyRef: {name: shared, key: password}}
""")


def client(**changes):
    """Return a Deployment without any variable, changed."""
    found = changed(metadata__name="client", spec__template__metadata__labels={"app": "client"})
    container = found["spec"]["template"]["spec"]["containers"][0]
    del container["env"], container["command"]
    container.update(changes)
    return found


def made(kind, name, spec, version="v1", **metadata):
    metadata = {"name": name, "namespace": "a", **metadata}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def counted(folder, *documents):
    """Return the names of the services; a policy shuts out all pods that no other one lets in."""
    closed = {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": []}
    write(folder, *documents, made("NetworkPolicy", "closed", closed, "networking.k8s.io/v1"))
    return {each.name for each in folder.budget().services}


def test_a_pod_without_a_sign_is_not_counted(folder):
    """A NetworkPolicy for all pods of the namespace is none."""
    everywhere = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}
    policy = made("NetworkPolicy", "n", everywhere, "networking.k8s.io/v1")
    assert counted(folder, DB, client(), policy) == set()


def test_a_pod_that_reaches_an_open_server_may_be_a_client(folder):
    """The host may stand in its code; known software and other namespaces are left out."""
    other = client()
    other["metadata"] = {"name": "other", "namespace": "b"}
    proxy = changed(client(image="nginx:1.29"), metadata__name="proxy")
    write(folder, DB, client(), other, proxy)
    budget = folder.budget()
    assert {each.name for each in budget.services} == {"client"}
    assert budget.verdict == "cannot be shown to fit"


@pytest.mark.parametrize(
    "change",
    [
        {"command": ["sh", "-c", "wait-for db:5432 && ./server"]},
        {"args": ["--host=db.a.svc.cluster.local"]},
        {"command": ["./server", "db-alias"]},
        {"envFrom": [{"secretRef": {"name": "shared"}}]},
        {
            "env": [
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "shared", "key": "password"}}}
            ]
        },
        {"volumeMounts": [{"name": "secret"}]},
        {"volumeMounts": [{"name": "all"}]},
        {"volumeMounts": [{"name": "file"}]},
    ],
)
def test_whatever_leads_to_the_server_is_a_sign(folder, change):
    """A host in a command or mounted file, and a Secret that the server uses as well."""
    volumes = [
        {"name": "secret", "secret": {"secretName": "shared"}},
        {"name": "all", "projected": {"sources": [{"secret": {"name": "shared"}}]}},
        {"name": "file", "configMap": {"name": "file"}},
    ]
    web = client(**change)
    names = {each["name"] for each in change.get("volumeMounts", ())}
    web["spec"]["template"]["spec"]["volumes"] = [each for each in volumes if each["name"] in names]
    service = made("Service", "db", {"selector": {"app": "db"}})
    alias = {"type": "ExternalName", "externalName": "db.a.svc.cluster.local"}
    config = made("ConfigMap", "file", None) | {"data": {"app.conf": "url = jdbc://db:5432/x"}}
    others = (service, made("Service", "db-alias", alias), config)
    assert counted(folder, DB, web, *others) == {"client"}


@pytest.mark.parametrize("namespace", ["a", "b"])
def test_a_key_of_another_part_or_namespace_is_no_sign(folder, namespace):
    """The Secret holds more than the server's password, or is another one of the same name."""
    key = "password" if namespace == "b" else "mail"
    env = [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "shared", "key": key}}}]
    web = client(env=env)
    web["metadata"]["namespace"] = namespace
    assert counted(folder, DB, web) == set()


@pytest.mark.parametrize(
    "spec",
    [
        {
            "podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        },
        {
            "podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}}
                    ]
                }
            ],
        },
        {
            "podSelector": {
                "matchExpressions": [{"key": "app", "operator": "In", "values": ["client"]}]
            },
            "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "db"}}}]}],
        },
        {
            "podSelector": {"matchLabels": {"app": "client"}},
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 5432}]}],
        },
    ],
)
def test_a_network_policy_is_a_sign(folder, spec):
    """It lets the pod in to the server, or out to the server or its port."""
    policy = made("NetworkPolicy", "n", spec, "networking.k8s.io/v1")
    others = client() | {"metadata": {"name": "other", "namespace": "b"}}
    others = changed(others, spec__template__metadata__labels={"app": "other"})
    assert counted(folder, DB, client(), others, policy) == {"client"}


def test_a_pooler_beside_a_container_is_reached_by_localhost(folder):
    """The container's connections end there."""
    web = client(env=[{"name": "DATABASE_URL", "value": "postgresql://app@localhost:6432/app"}])
    variables = {"DB_HOST": "db", "DB_NAME": "app", "DEFAULT_POOL_SIZE": "7"}
    variables["MAX_CLIENT_CONN"] = "900"
    env = [{"name": name, "value": value} for name, value in variables.items()]
    pooler = {"name": "pool", "image": "edoburu/pgbouncer", "env": env}
    web["spec"]["template"]["spec"]["containers"].append(pooler)
    write(folder, DB, web)
    budget = folder.budget(services=("client/web=1+0x1",))
    assert [each.through for each in budget.services] == ["client/pool"]
    assert [each.ceiling(100) for each in budget.poolers] == [42]


def test_keys_of_sealed_and_external_secrets_are_variables(folder):
    """Their names are in the files, though the values are not."""
    sealed = made(
        "SealedSecret", "app", {"encryptedData": {"PGPASSWORD": "x"}}, "bitnami.com/v1alpha1"
    )
    spec = {"target": {"name": "app"}, "data": [{"secretKey": "PGPASSWORD"}]}
    external = made("ExternalSecret", "other", spec, "external-secrets.io/v1")
    for secret, expected in ((sealed, {"client"}), (external, {"client"})):
        assert (
            counted(folder, DB, client(envFrom=[{"secretRef": {"name": "app"}}]), secret)
            == expected
        )
    mail = made("SealedSecret", "app", {"encryptedData": {"MAIL": "x"}}, "bitnami.com/v1alpha1")
    assert counted(folder, DB, client(envFrom=[{"secretRef": {"name": "app"}}]), mail) == set()


def test_a_host_is_the_one_of_the_pods_namespace(folder):
    """Each of two namespaces has a server of the same name; a longer name reaches the other one."""
    documents = []
    for namespace, host in (("a", "db"), ("b", "db"), ("c", "db.a")):
        web = client(env=[{"name": "PGHOST", "value": host}])
        web["metadata"] = {"name": f"web-{namespace}", "namespace": namespace}
        documents += [web]
        if namespace != "c":
            server = json.loads(json.dumps(DB))
            server["metadata"] = {"name": f"server-{namespace}", "namespace": namespace}
            documents += [server]
    write(folder, *documents)
    budgets = compute_budget(Options(paths=(folder.path,)))
    found = {each.database.name: {one.name for one in each.services} for each in budgets.each}
    assert found == {"server-a": {"web-a", "web-c"}, "server-b": {"web-b"}}


# -- operators ------------------------------------------------------------------------------

CNPG = "postgresql.cnpg.io/v1"


@pytest.mark.parametrize(
    ("cluster", "secret", "host", "limit"),
    [
        (
            made("Cluster", "pg", {"postgresql": {"parameters": {"max_connections": "300"}}}, CNPG),
            "pg-app",
            "pg-rw.a.svc",
            300,
        ),
        (made("Cluster", "pg", {"instances": 3}, CNPG), "pg-superuser", "pg-r", 100),
        (
            made("postgresql", "pg", {"postgresql": {"version": "17"}}, "acid.zalan.do/v1"),
            "shop.pg.credentials.postgresql.acid.zalan.do",
            "pg",
            None,
        ),
        (
            made("PostgresCluster", "pg", {}, "postgres-operator.crunchydata.com/v1beta1"),
            "pg-pguser-shop",
            "pg-primary.a",
            100,
        ),
        (made("SGCluster", "pg", {"instances": 1}, "stackgres.io/v1"), "pg", "pg-primary", None),
    ],
)
def test_an_operators_cluster_is_a_server(folder, cluster, secret, host, limit):
    """Its Secret and its Services are signs; a limit that the operator computes is unknown."""
    by_secret = client(volumeMounts=[{"name": "s"}])
    volumes = [{"name": "s", "secret": {"secretName": secret}}]
    by_secret["spec"]["template"]["spec"]["volumes"] = volumes
    by_host = changed(client(env=[{"name": "X", "value": host}]), metadata__name="other")
    write(folder, cluster, by_secret, by_host)
    budget = folder.budget()
    assert {each.name for each in budget.services} == {"client", "other"}
    assert (budget.database.name, budget.max_connections) == ("pg", limit)


@pytest.mark.parametrize(
    ("documents", "most"),
    [
        # (2 pods + 1 in a rollout) x 1 pair x 20.
        (
            [
                made("Cluster", "pg", {}, CNPG),
                made("Pooler", "pool", {"cluster": {"name": "pg"}, "instances": 2}, CNPG),
            ],
            60,
        ),
        # A second user: two pairs.
        (
            [
                made("Cluster", "pg", {"managed": {"roles": [{"name": "x", "login": True}]}}, CNPG),
                made("Pooler", "pool", {"cluster": {"name": "pg"}, "instances": 2}, CNPG),
            ],
            120,
        ),
        # Another program may have made the databases of a recovered cluster.
        (
            [
                made("Cluster", "pg", {"bootstrap": {"recovery": {"source": "x"}}}, CNPG),
                made("Pooler", "pool", {"cluster": {"name": "pg"}}, CNPG),
            ],
            None,
        ),
        # 60 connections divided among 2 pods, and one more pod in a rollout.
        ([made("postgresql", "pg", {"enableConnectionPooler": True}, "acid.zalan.do/v1")], 90),
        (
            [
                made(
                    "PostgresCluster",
                    "pg",
                    {
                        "proxy": {"pgBouncer": {"config": {"global": {"default_pool_size": "5"}}}},
                        "users": [{"name": "a", "databases": ["x", "y"]}, {"name": "b"}],
                    },
                    "postgres-operator.crunchydata.com/v1beta1",
                )
            ],
            40,
        ),
    ],
)
def test_an_operators_pooler(folder, documents, most):
    """Pods x pairs of database and user x pool size."""
    write(folder, *documents)
    budget = folder.budget()
    assert [each.ceiling(100) for each in budget.poolers] == [most]
    assert [each.verdict for each in [budget]] != ["fits"]


# -- serverless and rollouts ----------------------------------------------------------------


def cloud_run(annotations=(), own=(), kind="Service", version="serving.knative.dev/v1"):
    """Return a Cloud Run service with annotations."""
    pod = {"containers": [{"image": "x", "env": [{"name": "PGHOST", "value": "x"}]}]}
    template = {"metadata": {"annotations": dict(annotations)}, "spec": pod}
    return made(kind, "run", {"template": template}, version, annotations=dict(own))


@pytest.mark.parametrize(
    ("document", "instances", "deploying"),
    [
        (cloud_run([("autoscaling.knative.dev/maxScale", "8")]), 8, 16),
        (cloud_run([("autoscaling.knative.dev/max-scale", 8)]), 8, 16),
        (cloud_run([("run.googleapis.com/cloudsql-instances", "p:r:i")]), 100, 200),
        (cloud_run(own=[("run.googleapis.com/maxScale", "5")]), 5, 10),
        (cloud_run(own=[("run.googleapis.com/manualInstanceCount", "3")]), 3, 6),
        # Knative itself has no limit.
        (cloud_run(), None, None),
        (cloud_run([("autoscaling.knative.dev/maxScale", "0")]), None, None),
    ],
)
def test_instances_of_knative_and_cloud_run(folder, document, instances, deploying):
    """The maximum of a revision; old and new run together while it changes."""
    write(folder, document)
    (service,) = folder.budget(max_connections=400, services=("run=1+0x1",)).services
    assert (service.instances.value, service.ceiling) == (instances, deploying)


@pytest.mark.parametrize(
    ("spec", "tasks"),
    [({"taskCount": 9}, 9), ({"taskCount": 9, "parallelism": 4}, 4), ({}, 1)],
)
def test_tasks_of_a_cloud_run_job(folder, spec, tasks):
    """All tasks run at once unless parallelism is less."""
    pod = {"containers": [{"image": "x", "env": [{"name": "PGHOST", "value": "x"}]}]}
    job = {"template": {"spec": {**spec, "template": {"spec": pod}}}}
    write(folder, made("Job", "run", job, "run.googleapis.com/v1"))
    (service,) = folder.budget(max_connections=400, services=("run=1+0x1",)).services
    assert service.ceiling == tasks


@pytest.mark.parametrize(
    ("strategy", "pods"),
    [
        ({"canary": {}}, 8),
        ({"canary": {"maxSurge": 3}}, 9),
        ({"canary": {"trafficRouting": {"nginx": {}}}}, 12),
        ({"blueGreen": {"activeService": "x"}}, 12),
    ],
)
def test_argo_rollouts_run_old_and_new_pods(folder, ceilings, strategy, pods):
    """Side by side with blue-green and traffic routing, else by maxSurge."""
    rollout = changed(kind="Rollout", apiVersion="argoproj.io/v1alpha1", spec__strategy=strategy)
    write(folder, rollout)
    assert ceilings(folder.budget(max_connections=400, services=("web=1+0x1",))) == {"web": pods}


# -- what the API server accepts or refuses -------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"spec__replicas": "many"},
        {"spec__replicas": -1},
        {"spec__strategy": {"rollingUpdate": {"maxSurge": "x"}}},
        {"spec__template__spec__containers": [{"name": "web", "image": "x", "env": "y"}]},
        {"spec__template__spec__containers": []},
        {"spec__template__spec__containers": True},
        {"spec__template": None},
    ],
)
def test_one_wrong_object_leaves_the_others_counted(folder, change):
    """What is wrong in it is unknown."""
    write(folder, changed(**change), changed(metadata__name="other"))
    budget = folder.budget(max_connections=400)
    assert "other" in {each.name for each in budget.services}
    assert budget.verdict == "cannot be shown to fit"


@pytest.mark.parametrize("containers", [[], True, {"name": "web"}, ["web"], None])
def test_an_object_without_containers_is_unread(folder, containers):
    """It may be a patch, or the template of another program."""
    file = write(folder, changed(spec__template__spec__containers=containers))
    (unread,) = folder.budget(max_connections=400).unread
    assert unread.where.file == str(file)


def test_a_large_surge_is_a_number(folder, ceilings):
    """Percentages above 100 are accepted, and rounded up."""
    surge = {"rollingUpdate": {"maxSurge": "150%"}}
    write(folder, changed(spec__strategy=surge, spec__replicas="3"))
    assert ceilings(folder.budget(max_connections=400, services=("web=1+0x1",))) == {"web": 8}


def test_the_same_object_in_two_files_counts_once(folder, ceilings):
    """As in a release file beside the manifests that it was made from."""
    write(folder, WEB)
    write(folder, WEB, name="release.yaml")
    assert ceilings(folder.budget(max_connections=400, services=("web=1+0x1",))) == {"web": 6}


def test_a_custom_resource_that_names_the_server_is_unknown(folder):
    """Also one of a kind that does not exist today."""
    custom = made("Queue", "jobs", {"store": {"url": "postgresql://app@db/app"}}, "example.org/v1")
    other = made("Queue", "mail", {"store": "memory"}, "example.org/v1")
    assert counted(folder, DB, custom, other) == {"jobs"}
    assert folder.budget().verdict == "cannot be shown to fit"


EVERYTHING = """
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: {name: db, namespace: a, ownerReferences: [{kind: X, name: y, apiVersion: v1}]}
  spec:
    serviceName: db
    template:
      metadata: {labels: {app: db}}
      spec:
        volumes:
          - {name: v, secret: {secretName: s}}
          - {name: c, configMap: {name: c}}
          - {name: p, projected: {sources: [{secret: {name: s}}]}}
        initContainers: [{name: i, image: x, command: [a], restartPolicy: Always}]
        containers:
          - name: p
            image: postgres
            volumeMounts: [{name: v}]
            env:
              - {name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}
              - {name: B, valueFrom: {configMapKeyRef: {name: c, key: k}}}
            envFrom: [{secretRef: {name: s}, prefix: P_}, {configMapRef: {name: c}}]
- {apiVersion: v1, kind: Service, metadata: {name: db, namespace: a}, spec: {selector: {app: db}}}
- {apiVersion: v1, kind: Service, metadata: {name: e}, spec: {externalName: db.a.svc}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {k: "host: db", f: x}}
- {apiVersion: v1, kind: Secret, metadata: {name: s}, data: {k: v}, stringData: {l: m}}
- apiVersion: external-secrets.io/v1
  kind: ExternalSecret
  metadata: {name: s}
  spec: {target: {name: s}, data: [{secretKey: x}], dataFrom: [{}]}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: n, namespace: a}
  spec:
    podSelector:
      matchLabels: {app: db}
      matchExpressions: [{key: app, operator: In, values: [db]}]
    ingress: [{from: [{podSelector: {matchLabels: {app: w}}, namespaceSelector: {}}]}]
    egress: [{to: [{ipBlock: {cidr: x}}], ports: [{port: 5432}]}]
- apiVersion: keda.sh/v1alpha1
  kind: ScaledObject
  metadata: {name: k}
  spec: {scaleTargetRef: {name: w}, maxReplicaCount: 3}
- apiVersion: argoproj.io/v1alpha1
  kind: Rollout
  metadata: {name: r}
  spec: {workloadRef: {kind: Deployment, name: x}, strategy: {canary: {maxSurge: 1}}}
- apiVersion: serving.knative.dev/v1
  kind: Service
  metadata: {name: kn, annotations: {run.googleapis.com/maxScale: "3"}}
  spec: {template: {metadata: {annotations: {x: y}}, spec: {containers: [{image: x}]}}}
- apiVersion: postgresql.cnpg.io/v1
  kind: Cluster
  metadata: {name: pg}
  spec:
    bootstrap: {initdb: {}}
    postgresql: {parameters: {max_connections: "3", reserved_connections: 1}}
    managed: {roles: [{name: a, login: true}]}
- apiVersion: postgresql.cnpg.io/v1
  kind: Pooler
  metadata: {name: po}
  spec: {cluster: {name: pg}, instances: 1, pgbouncer: {parameters: {default_pool_size: "3"}}}
- apiVersion: acid.zalan.do/v1
  kind: postgresql
  metadata: {name: z}
  spec: {connectionPooler: {numberOfInstances: 2, maxDBConnections: 3}, databases: {a: b}}
- apiVersion: postgres-operator.crunchydata.com/v1beta1
  kind: PostgresCluster
  metadata: {name: cr}
  spec: {users: [{name: a, databases: [x]}], proxy: {pgBouncer: {config: {global: {a: "3"}}}}}
- {apiVersion: example.org/v1, kind: Q, metadata: {name: q}, spec: {url: "postgres://db/x", l: [a]}}
"""
RUBBISH = [None, True, 0, -3, 1.5, "", "x", "%", [], {}, [None], [1], {"x": 1}, [{"name": 3}], [[]]]


def places(value, way=()):
    """Return the path to every value inside a value."""
    found = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else found:
        yield (*way, key)
        yield from places(inner, (*way, key))


@given(data=st.data())
def test_any_value_anywhere_is_read(data):
    """A value of another type in any object ends no run, and no API server accepts it."""
    documents = yaml.safe_load(EVERYTHING)
    *steps, last = data.draw(st.sampled_from(list(places(documents))))
    parent = documents
    for step in steps:
        parent = parent[step]
    parent[last] = data.draw(st.sampled_from(RUBBISH))
    found = [Document(Path("x.yaml"), "x.yaml", each) for each in documents if fields(each)]
    assert describe_manifests(found, "").databases
