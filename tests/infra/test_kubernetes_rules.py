"""Rules that every overlay keeps, with each optional component: no schema knows them."""

import copy
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from infra.container_machine import Image
from infra.deployed import INFRA, ROOT
from infra.orchestrators import Cluster
from processes import run
from programs import needs_kubectl

pytestmark = [
    pytest.mark.process,
    needs_kubectl,
]

KUBERNETES = INFRA / "kubernetes"
OPTIONAL = ("ingress", "gateway", "keda", "security-groups", "monitoring")
VARIANTS = ("base", "local", "dev", "prod", *(f"prod with {each}" for each in OPTIONAL))
OLDEST, NEWEST = "1.30", "1.37"  # docs/kubernetes.md; the newest that the validator has
# Fields that an update may not change (Kubernetes API reference, "immutable").
IMMUTABLE = {
    "Deployment": lambda spec: spec["selector"],
    "StatefulSet": lambda spec: {
        name: value
        for name, value in spec.items()
        if name not in ("replicas", "template", "updateStrategy", "minReadySeconds", "ordinals")
    },
    "Job": lambda spec: (spec["template"], spec.get("selector"), spec.get("completions")),
    "Service": lambda spec: spec.get("clusterIP"),
}


@functools.cache
def rendered(variant, tag=None):
    """Return the objects of a variant, by kind and name; a tag is another image and setting."""
    name, _, component = variant.partition(" with ")
    with tempfile.TemporaryDirectory() as folder:
        infra = Path(folder) / "infra"
        shutil.copytree(KUBERNETES, infra / "kubernetes")
        shutil.copytree(INFRA / "monitoring", infra / "monitoring")
        where = infra / "kubernetes" / ("base" if name == "base" else f"overlays/{name}")
        file = where / "kustomization.yaml"
        text = file.read_text()
        if component:
            # As the head of the file says: the line is there, as a comment.
            wanted = rf"^  # (- \S*/{component})$"
            assert re.search(wanted, text, re.MULTILINE)
            text = re.sub(wanted, r"  \1", text, flags=re.MULTILINE)
        if tag:
            text = re.sub(r'newTag: ["\w]+', f'newTag: "{tag}"', text)
            text = text.replace("literals:", f"literals:\n      - NEW={tag}", 1)
        file.write_text(text)
        for login in ("owner", "application"):
            (where / f"{login}.password").write_text("not-a-sample-7f3a")
        answer = run("kubectl", "kustomize", where)
    assert answer.returncode == 0, answer.stderr
    return {
        (each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(answer.stdout)
    }


@pytest.fixture(params=VARIANTS)
def objects(request):
    return rendered(request.param)


def of_kind(objects, *kinds):
    return {name: each for (kind, name), each in objects.items() if kind in kinds}


def templates(objects):
    """Return the pod's template of each workload."""
    workloads = of_kind(objects, "Deployment", "StatefulSet", "DaemonSet", "Job")
    found = {name: each["spec"]["template"] for name, each in workloads.items()}
    for name, each in of_kind(objects, "CronJob").items():
        found[name] = each["spec"]["jobTemplate"]["spec"]["template"]
    return found


def containers(pod):
    return [*pod.get("initContainers", []), *pod["containers"]]


def selects(selector, labels):
    """Return whether a label selector matches labels."""
    for each in selector.get("matchExpressions", []):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


# -- pods -----------------------------------------------------------------------------------


def test_no_pod_gets_service_links(objects):
    """The variables of a Service would reach programs whose settings have the same prefix."""
    for name, template in templates(objects).items():
        assert template["spec"]["enableServiceLinks"] is False, name


@pytest.mark.parametrize("variant", ["base", "local"])
def test_no_architecture_is_asked_for_outside_the_cloud(variant):
    """A laptop is amd64 or arm64: only the overlays of EKS choose nodes."""
    for name, template in templates(rendered(variant)).items():
        assert not {"nodeSelector", "affinity"} & template["spec"].keys(), name


@pytest.mark.parametrize("variant", ["dev", "prod"])
def test_the_architecture_of_the_cloud_is_the_images(variant):
    """Every pod, or a node of the other kind gets an image that it cannot start."""
    for template in templates(rendered(variant)).values():
        assert template["spec"]["nodeSelector"] == {"kubernetes.io/arch": "arm64"}


def test_the_namespace_admits_every_pod(objects):
    """Its level is `restricted` (Pod Security Standards), which refuses a pod that asks for more."""
    level = objects["Namespace", "poolkit"]["metadata"]["labels"]
    assert level["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, template in templates(objects).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= {"emptyDir", "secret", "configMap"}, name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_what_is_referred_to_exists(objects):
    """ConfigMaps, Secrets and accounts of each pod, and the volumes that its containers mount."""
    for name, template in templates(objects).items():
        pod = template["spec"]
        wanted = {("ServiceAccount", pod.get("serviceAccountName", "default"))}
        wanted -= {("ServiceAccount", "default")}
        for volume in pod.get("volumes", []):
            if "secret" in volume:
                wanted.add(("Secret", volume["secret"]["secretName"]))
            if "configMap" in volume:
                wanted.add(("ConfigMap", volume["configMap"]["name"]))
        for container in containers(pod):
            for source in container.get("envFrom", []):
                wanted.add(("ConfigMap", source["configMapRef"]["name"]))
            for each in container.get("env", []):
                if "valueFrom" in each:
                    chosen = each["valueFrom"]["secretKeyRef"]
                    wanted.add(("Secret", chosen["name"]))
                    assert chosen["key"] in objects["Secret", chosen["name"]]["data"]
        assert wanted <= objects.keys(), name
        claims = objects.get(("StatefulSet", name), {"spec": {}})["spec"]
        volumes = [*pod.get("volumes", []), *claims.get("volumeClaimTemplates", [])]
        known = {each.get("name") or each["metadata"]["name"] for each in volumes}
        for container in containers(pod):
            assert {each["name"] for each in container.get("volumeMounts", [])} <= known, name


def test_probes_ask_a_port_that_is_declared(objects):
    """By its name; a container without a startup or readiness probe would get requests too early."""
    for name, template in templates(objects).items():
        for container in template["spec"]["containers"]:
            ports = {each["name"] for each in container.get("ports", [])}
            probes = {key: each for key, each in container.items() if key.endswith("Probe")}
            for probe in probes.values():
                asked = probe.get("httpGet", probe.get("tcpSocket", {"port": None}))["port"]
                assert asked is None or asked in ports, name
            assert "readinessProbe" in probes or not ports, name


MEMORY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "": 1}


def quantity(text):
    """Return a quantity of Kubernetes as a number: processors, or bytes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", str(text)).groups()
    return float(number) / 1000 if unit == "m" else float(number) * MEMORY[unit]


def test_no_request_is_above_its_limit(objects):
    """The API refuses such a pod; no schema compares the two."""
    for name, template in templates(objects).items():
        for container in containers(template["spec"]):
            resources = container["resources"]
            for kind, limit in resources["limits"].items():
                assert quantity(resources["requests"][kind]) <= quantity(limit), (name, kind)


def requested(pod, kind):
    """Return what the scheduler reserves: the sum, or the largest init container if that is more."""
    asked = [
        [quantity(each["resources"]["requests"][kind]) for each in pod.get(part, [])]
        for part in ("containers", "initContainers")
    ]
    return max(sum(asked[0]), *asked[1], 0)


def test_the_local_cluster_fits_a_laptop():
    """Two processors and 4 GiB, with a rollout of everything, and what kind itself reserves."""
    pods = {
        name: (each["spec"], 1 if ("StatefulSet", name) in rendered("local") else 2)
        for name, each in templates(rendered("local")).items()
    }
    # The control plane, etcd, CoreDNS and kindnet: 950m and 290 MiB, and their use of memory.
    reserved = {"cpu": 0.95, "memory": 2**30}
    for kind, whole in (("cpu", 2), ("memory", 4 * 2**30)):
        needed = sum(requested(pod, kind) * count for pod, count in pods.values())
        assert needed + reserved[kind] <= whole


def test_the_images_for_kind_have_no_attestation():
    """`kind load docker-image` refuses an image whose index names a manifest that is not there."""
    text = (KUBERNETES / "overlays" / "local" / "kustomization.yaml").read_text()
    builds = re.findall(r"^#\s+(docker build .*)$", text, re.MULTILINE)
    assert len(builds) == 3
    assert all("--provenance=false" in each for each in builds)


HOSTILE = ("database", "poolkit", "worker", "uvicorn", "application", "statement", "aws", "redis")


@pytest.mark.parametrize("variant", ["local", "prod"])
def test_services_of_others_change_no_environment(variant):
    """A Service whose variables would have the prefix of a setting reaches no container."""
    known = dict.fromkeys(f"poolkit-{name}" for name in ("web", "worker", "pgbouncer"))
    image = Image({}, "/", "10001", [], [], None, [])
    images = dict.fromkeys([*known, "postgres", "valkey"], image)
    found = rendered(variant)
    services = [
        {
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        }
        for name in HOSTILE
    ]

    def environments(*more):
        cluster = Cluster([*found.values(), *more], images)
        return {
            (pod, each.name): each.variables
            for pod in cluster.pods()
            for part in cluster.containers(pod)
            for each in part
        }

    assert environments(*services) == environments()
    linked = copy.deepcopy(found)
    for each in templates(linked).values():
        del each["spec"]["enableServiceLinks"]
    with_links = Cluster([*linked.values(), *services], images).containers("web")[1][0].variables
    assert with_links["UVICORN_SERVICE_HOST"]


# -- references between objects -------------------------------------------------------------


def test_services_lead_to_a_port_of_their_pods(objects):
    """The selector matches a pod, and the target is one of its containers' ports."""
    for name, service in of_kind(objects, "Service").items():
        spec = service["spec"]
        matched = [
            template
            for template in templates(objects).values()
            if selects({"matchLabels": spec["selector"]}, template["metadata"]["labels"])
        ]
        assert len(matched) == 1, name
        ports = [p for c in matched[0]["spec"]["containers"] for p in c.get("ports", [])]
        for port in spec["ports"]:
            assert port["targetPort"] in {each["containerPort"] for each in ports}, name


def test_routes_lead_to_a_service(objects):
    """Ingress and HTTPRoute name a Service and one of its ports."""
    backends = []
    for ingress in of_kind(objects, "Ingress").values():
        annotations = ingress["metadata"]["annotations"]
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                service = path["backend"]["service"]
                action = f"alb.ingress.kubernetes.io/actions.{service['name']}"
                if service["port"].get("name") == "use-annotation":
                    assert action in annotations
                else:
                    backends.append((service["name"], service["port"].get("name")))
    for route in of_kind(objects, "HTTPRoute").values():
        for rule in route["spec"]["rules"]:
            backends += [(each["name"], each["port"]) for each in rule.get("backendRefs", [])]
        gateway = objects["Gateway", route["spec"]["parentRefs"][0]["name"]]
        listeners = {each["name"] for each in gateway["spec"]["listeners"]}
        assert {each["sectionName"] for each in route["spec"]["parentRefs"]} <= listeners
    for name, port in backends:
        ports = objects["Service", name]["spec"]["ports"]
        assert port in {p for each in ports for p in (each["name"], each["port"])}


@pytest.mark.parametrize("component", ["ingress", "gateway"])
def test_a_route_from_outside_has_tls_and_hides_the_metrics(component):
    """HTTP only redirects, and /metrics leads to no pod."""
    objects = rendered(f"prod with {component}")
    if component == "ingress":
        ((_, ingress),) = of_kind(objects, "Ingress").items()
        prefix = "alb.ingress.kubernetes.io/"
        annotations = ingress["metadata"]["annotations"]
        refusal = json.loads(annotations[f"{prefix}actions.no-metrics"])
        assert refusal["fixedResponseConfig"]["statusCode"] == "404"
        assert annotations[f"{prefix}ssl-redirect"] == "443"
        assert annotations[f"{prefix}certificate-arn"].startswith("arn:aws:acm:")
        (rule,) = ingress["spec"]["rules"]
        first = rule["http"]["paths"][0]
        assert (first["path"], first["backend"]["service"]["name"]) == ("/metrics", "no-metrics")
        return
    by_name = {each["name"]: each for each in objects["Gateway", "web"]["spec"]["listeners"]}
    assert by_name["https"]["tls"]["mode"] == "Terminate"
    for route in of_kind(objects, "HTTPRoute").values():
        listener = by_name[route["spec"]["parentRefs"][0]["sectionName"]]
        for rule in route["spec"]["rules"]:
            if listener["protocol"] == "HTTP" or "/metrics" in str(rule.get("matches")):
                assert "backendRefs" not in rule


def test_targets_by_address_are_healthy_before_the_old_ones_end():
    """With `target-type: ip` a pod is ready before the load balancer knows it, unless this gate waits."""
    objects = rendered("prod with ingress")
    ((_, ingress),) = of_kind(objects, "Ingress").items()
    assert ingress["metadata"]["annotations"]["alb.ingress.kubernetes.io/target-type"] == "ip"
    labels = objects["Namespace", "poolkit"]["metadata"]["labels"]
    assert labels["elbv2.k8s.aws/pod-readiness-gate-inject"] == "enabled"
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_selectors_match_a_pod(objects):
    """Of policies, budgets, monitors and security groups; an empty one is all pods."""
    labels = [template["metadata"]["labels"] for template in templates(objects).values()]
    for name, each in of_kind(
        objects, "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "SecurityGroupPolicy"
    ).items():
        spec = each["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        assert any(selects(selector, found) for found in labels), name


def test_one_autoscaler_for_each_workload(objects):
    """KEDA makes an autoscaler: a second one would work against it."""
    targets = [
        each["spec"]["scaleTargetRef"]["name"]
        for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject").values()
    ]
    assert len(targets) == len(set(targets))
    assert set(targets) <= of_kind(objects, "Deployment").keys()


def test_monitors_scrape_a_port_that_serves_metrics(objects):
    """The port's name is one of the pods', and the policy lets Prometheus in."""
    for name, monitor in of_kind(objects, "PodMonitor").items():
        ports = {
            port["name"]: port["containerPort"]
            for template in templates(objects).values()
            if selects(monitor["spec"]["selector"], template["metadata"]["labels"])
            for container in template["spec"]["containers"]
            for port in container.get("ports", [])
        }
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint["port"] in ports
            admitted = objects["NetworkPolicy", name]["spec"]["ingress"]
            assert any(
                ports[endpoint["port"]] in {port["port"] for port in rule["ports"]}
                and ("from" not in rule or "monitoring" in str(rule["from"]))
                for rule in admitted
            )


# -- who may reach whom ---------------------------------------------------------------------


def connections(objects):
    """Give the pod, the Service and the port of each connection that variables describe."""
    services = of_kind(objects, "Service")
    for name, template in templates(objects).items():
        for container in containers(template["spec"]):
            texts = {each["name"]: each.get("value", "") for each in container.get("env", [])}
            for source in container.get("envFrom", []):
                texts = objects["ConfigMap", source["configMapRef"]["name"]]["data"] | texts
            for variable, text in texts.items():
                host = re.search(r"(?:@|//)([\w.-]+):(\d+)", text)
                found = host[1] if host else text if variable.endswith("_HOST") else None
                if found in services:
                    yield name, found, services[found]["spec"]["ports"][0]["targetPort"]


def test_policies_admit_the_connections_that_pods_make(objects):
    """Every pod that is told the name of a Service may connect to it, on its port."""
    for client, service, port in connections(objects):
        labels = templates(objects)[client]["metadata"]["labels"]
        rules = objects["NetworkPolicy", service]["spec"]["ingress"]
        assert any(
            port in {each["port"] for each in rule["ports"]}
            and any(selects(peer["podSelector"], labels) for peer in rule["from"])
            for rule in rules
        ), (client, service)


def test_the_local_cluster_connects_within_itself():
    """PgBouncer, database and broker are reached by name: the rule above has something to check."""
    found = {(client, service) for client, service, _ in connections(rendered("local"))}
    assert found == {
        *(("web", "pgbouncer"), ("web", "postgres"), ("worker", "postgres")),
        *(("worker", "valkey"), ("pgbouncer", "postgres"), ("migration", "postgres")),
    }


def test_a_pod_without_a_policy_of_its_own_accepts_nothing(objects):
    """One policy selects every pod, and allows nothing."""
    spec = objects["NetworkPolicy", "nothing-else"]["spec"]
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_only_the_migration_knows_the_owner(objects):
    """Its account, its settings and the owner's password are no other pod's; the database made it."""
    for name, template in templates(objects).items():
        pod = template["spec"]
        text = str(pod)
        if name not in ("migration", "postgres"):
            assert pod["serviceAccountName"] == name if name != "valkey" else True
            assert not re.search(r"'owner-\w+'|'migration-\w+'", text), name
    arns = {
        name: each["data"].get("DATABASE_SECRET_ARN")
        for name, each in of_kind(objects, "ConfigMap").items()
        if "DATABASE_SECRET_ARN" in each.get("data", {})
    }
    assert len(set(arns.values())) == len(arns)


# -- applied again --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["local", "dev", "prod"])
def test_a_new_image_and_setting_can_be_applied(variant):
    """No field changes that Kubernetes would refuse to change, such as the template of a Job."""
    before, after = rendered(variant), rendered(variant, "next")
    changed = 0
    for key in before.keys() & after.keys():
        frozen = IMMUTABLE.get(key[0], lambda _spec: None)
        if "spec" in before[key]:
            assert frozen(before[key]["spec"]) == frozen(after[key]["spec"]), key
            changed += before[key]["spec"] != after[key]["spec"]
    # Every Deployment has another image, or its pods would stay as they are.
    assert changed >= len(of_kind(before, "Deployment"))


def test_a_job_would_be_noticed():
    """The rule above refuses what the migration once was."""
    job = {"template": {"image": "web:1"}}
    other = copy.deepcopy(job)
    other["template"]["image"] = "web:2"
    assert IMMUTABLE["Job"](job) != IMMUTABLE["Job"](other)


def test_nothing_is_made_again_by_a_controller(objects):
    """An object that deletes itself is created again, forever, by what keeps a cluster in sync."""
    assert not of_kind(objects, "Job")
    assert all("ttlSecondsAfterFinished" not in str(each) for each in objects.values())


def test_web_and_worker_wait_for_the_migration(objects):
    """Their init container ends when the schema is there; the migration's ends the upgrade."""
    found = templates(objects)
    upgrade = found["migration"]["spec"]["initContainers"][0]
    assert upgrade["command"][-1].startswith("python -m poolkit db upgrade ")
    role = found["migration"]["spec"]["initContainers"][1]
    assert role["command"] == ["python", "-m", "poolkit", "db", "role"]
    for name in ("web", "worker"):
        (schema,) = found[name]["spec"]["initContainers"]
        assert "poolkit db check" in schema["command"][-1]
        (container,) = found[name]["spec"]["containers"]
        assert schema["image"] == container["image"]
        # Through a pooler or not, both must see the same database.
        assert "PGBOUNCER" not in str(schema)


@pytest.mark.parametrize("variant", ["dev", "prod"])
def test_the_role_is_made_with_the_login_of_the_others(variant):
    """One secret: what `db role` sets is what web, worker and PgBouncer log in with."""
    settings = {
        name.rpartition("-")[0]: each["data"]
        for name, each in of_kind(rendered(variant), "ConfigMap").items()
    }
    secret = settings["migration"]["APPLICATION_SECRET_ARN"]
    assert secret == settings["deployment"]["DATABASE_SECRET_ARN"]
    assert secret != settings["migration"]["DATABASE_SECRET_ARN"]


def test_the_local_role_is_made_with_the_login_of_the_others():
    """The Secret `application` is the password of `app` in every pod."""
    found = templates(rendered("local"))
    role = found["migration"]["spec"]["initContainers"][1]
    (volume,) = [v for v in found["migration"]["spec"]["volumes"] if "secret" in v]
    secret = volume["secret"]["secretName"]
    (mount,) = [each for each in role["volumeMounts"] if each["name"] == volume["name"]]
    variables = {each["name"]: each.get("value") for each in role["env"]}
    assert variables["APPLICATION_PASSWORD_FILE"] == f"{mount['mountPath']}/password"
    assert variables["APPLICATION_USER"] == "app"
    for name in ("web", "worker", "pgbouncer"):
        assert secret in str(found[name]), name


def test_nothing_depends_on_the_first_start_of_a_volume(objects):
    """A script of /docker-entrypoint-initdb.d runs on an empty volume only."""
    assert all("initdb.d" not in str(each) for each in objects.values())


# -- schemas --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_has_the_fields_of_its_schema(version, tmp_path):
    """Strictly, in the oldest version that is supported and in the newest; no field is unknown."""
    files = []
    for variant in VARIANTS:
        file = tmp_path / f"{variant}.yaml"
        file.write_text(yaml.safe_dump_all(rendered(variant).values()))
        files.append(file)
    answer = run(ROOT / "scripts" / "kubernetes-validate", "-k", version, *files, timeout_s=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.slow
def test_an_unknown_field_is_noticed(tmp_path):
    """The validator is strict: a misspelt field is an error."""
    objects = copy.deepcopy(rendered("base"))
    objects["Deployment", "web"]["spec"]["template"]["spec"]["enableServiceLink"] = False
    file = tmp_path / "misspelt.yaml"
    file.write_text(yaml.safe_dump_all(objects.values()))
    answer = run(ROOT / "scripts" / "kubernetes-validate", "-k", NEWEST, file, timeout_s=300)
    assert answer.returncode != 0
    assert "enableServiceLink" in answer.stdout + answer.stderr


def test_the_document_names_the_oldest_version():
    """A field of a newer version would be dropped without a word: preStop's `sleep` is one."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"Kubernetes {OLDEST} or" in text.replace("\n", " ")
