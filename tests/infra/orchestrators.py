"""What Kubernetes and Compose make of their files: containers with all that decides how they start."""

import base64
import re
from pathlib import Path

from infra.container_machine import Container

SYSTEM = {"KUBERNETES": ("10.96.0.1", 443, "https")}


class Cluster:
    """The objects of a rendered overlay, by kind and name."""

    def __init__(self, documents, images):
        self.objects = {(each["kind"], each["metadata"]["name"]): each for each in documents}
        self.images = images

    def pods(self):
        """Return the pod of each Deployment and StatefulSet, by its name."""
        return {
            name: each["spec"]["template"]["spec"]
            for (kind, name), each in self.objects.items()
            if kind in ("Deployment", "StatefulSet")
        }

    def containers(self, pod_name):
        """Return the init containers of a pod in their order, and its containers."""
        pod = self.pods()[pod_name]
        return [
            [self._container(pod, each) for each in pod.get(part, [])]
            for part in ("initContainers", "containers")
        ]

    def service_links(self, pod):
        """Return what the kubelet writes about each Service of the namespace.

        Without `enableServiceLinks: false` these are all Services with an address; the API's own is
        always there.
        """
        wanted = dict(SYSTEM)
        if pod.get("enableServiceLinks", True):
            for number, ((kind, name), each) in enumerate(sorted(self.objects.items(), key=str)):
                if kind == "Service" and each["spec"].get("clusterIP") != "None":
                    (port,) = each["spec"]["ports"]
                    key = name.upper().replace("-", "_")
                    wanted[key] = (f"10.96.1.{number}", port["port"], port["name"])
        found = {}
        for name, (address, port, port_name) in wanted.items():
            suffix = port_name.upper().replace("-", "_")
            tcp = f"{name}_PORT_{port}_TCP"
            found |= {
                f"{name}_SERVICE_HOST": address,
                f"{name}_SERVICE_PORT": str(port),
                f"{name}_SERVICE_PORT_{suffix}": str(port),
                f"{name}_PORT": f"tcp://{address}:{port}",
                tcp: f"tcp://{address}:{port}",
                f"{tcp}_PROTO": "tcp",
                f"{tcp}_PORT": str(port),
                f"{tcp}_ADDR": address,
            }
        return found

    def _container(self, pod, spec):
        image = self.images[spec["image"].rpartition("/")[2].partition(":")[0].partition("@")[0]]
        security = pod["securityContext"]
        variables = self._variables(pod, spec)
        # Kubernetes: `command` replaces ENTRYPOINT and drops CMD; `args` replaces CMD.
        entrypoint = spec.get("command", image.entrypoint)
        arguments = spec.get("args", [] if "command" in spec else image.command)
        writable, files = self._volumes(pod, spec)
        ports = {each["name"]: each["containerPort"] for each in spec.get("ports", [])}
        probes = {
            name: _with_number(spec[f"{name}Probe"], ports)
            for name in ("startup", "readiness", "liveness")
            if f"{name}Probe" in spec
        }
        pause = spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        return Container(
            name=spec["name"],
            image=image,
            command=[_expanded(word, variables) for word in (*entrypoint, *arguments)],
            variables=variables,
            user=str(security.get("runAsUser", image.user)),
            group=str(security.get("runAsGroup", image.user)),
            extra_group=str(security["fsGroup"]) if "fsGroup" in security else None,
            working_directory=spec.get("workingDir", image.working_directory),
            read_only=spec["securityContext"].get("readOnlyRootFilesystem", False),
            writable=writable,
            files=files,
            probes=probes,
            grace_s=pod.get("terminationGracePeriodSeconds", 30) - pause,
        )

    def _variables(self, pod, spec):
        """Return the variables: links, then `envFrom`, then `env`, which may refer to its own."""
        found, own = self.service_links(pod), {}
        for source in spec.get("envFrom", []):
            name = source["configMapRef"]["name"]
            found |= self.objects["ConfigMap", name]["data"]
        for each in spec.get("env", []):
            if "valueFrom" in each:
                chosen = each["valueFrom"]["secretKeyRef"]
                own[each["name"]] = self.secret(chosen["name"])[chosen["key"]]
            else:
                own[each["name"]] = _expanded(each["value"], own)
        return found | own

    def secret(self, name):
        """Return the texts of a Secret by their key; Kustomize adds a hash to its name."""
        (data,) = [
            each["data"]
            for (kind, full), each in self.objects.items()
            if kind == "Secret" and name in (full, full.rpartition("-")[0])
        ]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def _volumes(self, pod, spec):
        writable, files = {}, {}
        volumes = {each["name"]: each for each in pod.get("volumes", [])}
        for mount in spec.get("volumeMounts", []):
            volume, path = volumes.get(mount["name"], {"claim": {}}), mount["mountPath"]
            if "secret" in volume:
                texts = self.secret(volume["secret"]["secretName"])
            elif "configMap" in volume:
                texts = self.objects["ConfigMap", volume["configMap"]["name"]]["data"]
            else:
                # Empty, with the write permission for all that the kubelet gives it.
                writable[path] = 0o2777
                continue
            files |= {f"{path}/{key}": text for key, text in texts.items()}
        return writable, files


def _with_number(probe, ports):
    """Return the probe with the number of a named port."""
    result = dict(probe)
    for kind in ("httpGet", "tcpSocket"):
        if kind in result:
            port = result[kind]["port"]
            result[kind] = result[kind] | {"port": ports.get(port, port)}
    return result


def _expanded(text, variables):
    """Return a text with `$(NAME)` replaced; what is not known stays as it is."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), str(text))


def container_of_compose(created, images):
    """Return the container that Docker would start for a request of Compose.

    Args:
        created: what Compose asked the engine to create, and copied into it.
        images: the images by their name.
    """
    request, host = created.request, created.host
    image = images[request["Image"]]
    # Docker: an entrypoint of the request drops the image's command.
    entrypoint = request.get("Entrypoint") or image.entrypoint
    command = request.get("Cmd") or ([] if request.get("Entrypoint") else image.command)
    account = request.get("User") or image.user
    test = (request.get("Healthcheck") or {}).get("Test") or ["CMD", *(image.healthcheck or [])]
    probe = {
        "exec": {"command": test[1:]},
        "timeoutSeconds": 15,
        "periodSeconds": 1,
        "failureThreshold": 60,
    }
    assert test[0] == "CMD"
    return Container(
        name=created.service,
        image=image,
        command=[*entrypoint, *command],
        variables=created.environment,
        user=account.partition(":")[0],
        group=account.partition(":")[2] or account.partition(":")[0],
        working_directory=request.get("WorkingDir") or image.working_directory,
        read_only=bool(host.get("ReadonlyRootfs")),
        # A tmpfs has the mode that the file says; a VOLUME of the image is its account's.
        writable={
            **dict.fromkeys(image.volumes, 0o1777),
            **{path: _mode(options) for path, options in (host.get("Tmpfs") or {}).items()},
            **{bind.split(":")[1]: 0o777 for bind in host.get("Binds") or []},
        },
        files=created.files | _mounted_files(host),
        probes={"startup": probe, "liveness": probe} if test[1:] else {},
        grace_s=float(request.get("StopTimeout") or 10),
    )


def _mode(options):
    found = re.search(r"mode=(\d+)", options)
    # Docker: a tmpfs without a mode is everyone's, as /tmp.
    return int(found[1], 8) if found else 0o1777


def _mounted_files(host):
    """Return the files of this machine that are mounted, such as a config's with `file`."""
    return {
        mount["Target"]: Path(mount["Source"]).read_text()
        for mount in host.get("Mounts") or []
        if mount["Type"] == "bind"
    }


def container_of_ecs(deployable, image, values, probe):
    """Return the container that ECS would start on Fargate.

    Args:
        deployable: a container of a task definition.
        image: its image.
        values: what only a deployment knows, by the variable's name.
        probe: the load balancer's check, for a container without one of its own.
    """
    definition = deployable.definition
    variables = {
        name: values.get(name, value) if value == "later" or "arn:" in value else value
        for name, value in deployable.text().items()
    }
    checked = definition.get("HealthCheck")
    if checked:
        probe = {
            "exec": {"command": checked["Command"][1:]},
            "timeoutSeconds": checked["Timeout"],
            "periodSeconds": checked["Interval"],
        }
        assert checked["Command"][0] == "CMD"
    return Container(
        name=deployable.name,
        image=image,
        command=[*image.entrypoint, *definition["Command"]],
        variables=variables,
        user=definition["User"],
        group=definition["User"],
        working_directory=image.working_directory,
        read_only=definition["ReadonlyRootFilesystem"],
        # Fargate fills an empty volume from the image's folder, with its mode: /tmp is everyone's.
        writable={
            mount["ContainerPath"]: 0o1777
            for mount in definition["MountPoints"]
            if mount["ContainerPath"] in image.volumes
        },
        probes={"startup": probe, "liveness": probe} if probe else {},
        grace_s=definition["StopTimeout"],
    )
