"""Kubernetes manifests: lists, sidecars, namespaces, custom resources."""

import json
import shutil

import pytest
import yaml

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is missing")
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
    """The objects of charts in a kustomization, and of releases of Flux, are not read."""
    release = {"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease"}
    write(folder, {**release, "metadata": {"name": "x"}}, name="release.yaml")
    (unread,) = folder.budget(max_connections=400).unread
    assert "HelmRelease" in unread.reason
    folder.write("base/kustomization.yaml", "helmCharts: [{name: x}]\n")
    file = folder.write("prod/kustomization.yaml", "resources: [../base]\n")
    budget = folder.budget(file.parent, max_connections=400)
    assert [each.reason.partition(" ")[0] for each in budget.unread] == ["helmCharts"]
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
