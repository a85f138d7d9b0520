"""Compose files as workloads: services, replicas, variables, networks and configuration files.

Source: the Compose Specification (deploy.replicas, deploy.mode, scale, environment, env_file, build,
configs, secrets, networks, interpolation, update_config). `docker compose up` stops a container
before it starts the new one; old and new run together under `update_config.order: start-first` only.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.compose.dockerfiles import Stage, built_from, read_if_there
from poolkit.budget.compose.files import put_together
from poolkit.budget.model import Description, Evidence, Overlap, Variable, Workload, known, unknown
from poolkit.budget.read.documents import read_text, read_variables
from poolkit.budget.read.values import Unknown, as_text, get_path, whole_number
from poolkit.budget.signs import hosts_in
from poolkit.budget.software import is_pooler, is_server
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import ParameterValue
    from poolkit.budget.software import Software

# The innermost ${NAME:-default}, whose default holds no other; "$$" was taken out before.
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?:(:?[-+?])([^{}]*))?\}|(\w+))")
_DOLLAR = "\0"
_CONFIGURATION = re.compile(r".*\.(ini|conf|cnf|cfg|toml|ya?ml|env|properties|json)")
_ANY = ("*", "*")
"""The network of a container that may reach every other one."""


def describe_compose(
    documents: Sequence[Document],
    given: Mapping[str, ParameterValue],
    softwares: Collection[Software] = (),
) -> Description:
    """Return every service of compose files as a workload.

    Raises:
        TemplateError: a file is wrong; the message names the line.
    """
    services: list[_Service] = []
    together, unread = put_together(documents)
    for document in together:
        file = document.path.parent / ".env"
        variables = read_variables(read_text(file)) if file.is_file() else {}
        variables |= {name: str(value.value) for name, value in given.items()}
        for name, content in document.data["services"].items():
            if not isinstance(content, dict):
                where = document.where("services", name)
                raise TemplateError(f"service {name} must be a mapping", where)
            services.append(_Service(document, name, content, variables))
    found = [(each, each.workload()) for each in services]
    servers = [
        pair for pair in found if is_server(pair[1], softwares) or is_pooler(pair[1], softwares)
    ]
    workloads = []
    for service, own in found:
        signs = [service.sign_of(own, *each) for each in servers]
        evidence = tuple(each for each in signs if each is not None)
        workloads.append(replace(own, evidence=evidence))
    return Description(workloads=tuple(workloads), unread=tuple(unread))


@dataclass(frozen=True)
class _Service:
    """One service, and the variables that replace its `${...}`."""

    document: Document
    name: str
    service: dict[str, Any]
    variables: Mapping[str, str]

    def workload(self) -> Workload:
        """Return the service as a workload."""
        document, path = self.document, ("services", self.name)
        build = self.service.get("build")
        stage = built_from(self._filled_in(build)) if isinstance(build, dict) else Stage()
        variables, unread = self._environment(stage)
        command, command_origin = self._command(stage)
        own = document.where(*path)
        instances = known(1, f"{own}: 1, the default of replicas", own)
        for way in (("scale",), ("deploy", "replicas")):
            found = self._text(get_path(self.service, *way))
            if found is not None:
                where = document.where(*path, *way)
                instances = whole_number(found, way[-1], str(where), where)
        if str(get_path(self.service, "deploy", "mode")).startswith("global"):
            instances = unknown("mode global: one on every node", own)
        networks = self._mapping("networks").values()
        aliases = [str(name) for each in networks for name in _listed(get_path(each, "aliases"))]
        keys = ("hostname", "container_name")
        own_names = [self._filled(str(self.service[key]))[0] for key in keys if key in self.service]
        image = self._filled(str(self.service.get("image") or ""), "?")[0]
        return Workload(
            name=self.name,
            platform="compose service",
            unit="replica",
            where=own,
            instances=instances,
            overlap=self._overlap(),
            variables=variables,
            # The name of an image that is built here shows nothing of its content.
            image="" if stage.base_image else image,
            command=command,
            command_origin=command_origin,
            unread_variables=unread,
            mounted=self._mounted(),
            hosts=(self.name, *own_names, *aliases),
            base_image=stage.base_image,
        )

    def sign_of(self, own: Workload, other: _Service, server: Workload) -> Evidence | None:
        """Return the sign that this service connects to a server; None: no network leads there."""
        here, there = _networks(self.document, self.name), _networks(other.document, other.name)
        if not (here & there or (_ANY in here | there and here and there)):
            return None
        key, reason = "networks", f"it shares a network with {other.name}"
        if {host for word in own.command or () for host in hosts_in(word)} & set(server.hosts):
            key, reason = "command", f"its command line names {other.name}"
        for each in ("external_links", "links", "depends_on"):
            named = {str(name).partition(":")[0] for name in _listed(self.service.get(each))}
            if other.name in named:
                key, reason = each, f"{each} {other.name}"
        where, is_network = self.document.where("services", self.name, key), key == "networks"
        return Evidence(reason=reason, where=where, hosts=server.hosts, is_network=is_network)

    def _command(self, stage: Stage) -> tuple[tuple[str, ...] | None, str]:
        """Return the words of entrypoint and command, its own or the Dockerfile's, and the origin."""
        own: dict[str, tuple[str, ...]] = {}
        for key in ("entrypoint", "command"):
            found = self.service.get(key)
            if found is None:
                continue
            texts = found if isinstance(found, list) else [found]
            filled = [self._filled(str(each), "?")[0] for each in texts]
            try:
                # A text is split as Compose does it, which starts no shell.
                own[key] = tuple(filled if isinstance(found, list) else shlex.split(filled[0]))
            except ValueError:
                own[key] = tuple(filled)
        path = ("services", self.name)
        origin = self.document.where(*path, "command" if "command" in own else "entrypoint")
        if "entrypoint" in own:
            return own["entrypoint"] + own.get("command", ()) or None, str(origin)
        words = (stage.entrypoint or ()) + own.get("command", stage.command or ())
        return words or None, str(origin if "command" in own else stage.where or origin)

    def _mounted(self) -> dict[str, str]:
        """Return the texts of its configuration files by their names."""
        mounted: dict[str, str] = {}
        for target, source in self._mapping("configs").items():
            config = self._filled_in(self.document.mapping("configs").get(str(source)))
            text = str(config.get("content") or read_if_there(config.get("file")))
            mounted[target if _CONFIGURATION.fullmatch(target) else f"{target}.ini"] = text
        for target, source in self._mapping("volumes").items():
            file = Path(self._filled(str(source))[0])
            # A folder of configuration: ./conf.d:/etc/mysql/conf.d.
            is_folder = "conf" in target and file.is_dir()
            for each in sorted(file.iterdir()) if is_folder else [file]:
                if _CONFIGURATION.fullmatch(each.name):
                    mounted[str(each)] = read_if_there(each)
        return mounted

    def _environment(self, stage: Stage) -> tuple[dict[str, Variable], str]:
        """Return the variables, and the source of others that could not be read."""
        found: dict[str, Variable] = dict(stage.variables)
        unread = ""
        for each in self.service.get("env_file") or ():
            file = Path(self._filled(each)[0])
            if not file.is_file():
                unread = f"{file} does not exist"
                continue
            for key, written in read_variables(read_text(file)).items():
                found[key] = self._variable(written, str(file))
        if not {"image", "build"} & self.service.keys():
            unread = (
                "it has neither image nor build, so it is a part of another file's service: name "
                "the output of `docker compose config`"
            )
        for key, value in self._mapping("environment").items():
            origin = str(self.document.where("services", self.name, "environment", key))
            if value is None and key not in self.variables:
                reason = f"{key} is taken from the shell"
                found[key] = Variable(text=None, origin=origin, reason=reason)
            else:
                # Without a value it is passed on from the shell that starts it.
                written = self.variables[key] if value is None else str(as_text(value))
                found[key] = self._variable(written, origin)
        for name in self._mapping("secrets").values():
            # The names of mounted secrets are signs as those of variables are.
            origin = str(self.document.where("services", self.name, "secrets"))
            found[f"secrets.{name}"] = Variable(text=None, origin=origin, reason="a secret")
        return found, unread

    def _overlap(self) -> Overlap:
        update = get_path(self.service, "deploy", "update_config")
        if not isinstance(update, dict) or update.get("order") != "start-first":
            return Overlap()
        where = self.document.where("services", self.name, "deploy", "update_config")
        written = self._text(update.get("parallelism", 1))
        parallel = whole_number(written, "parallelism", str(where), where)
        if parallel.value == 0:
            return Overlap(kind="percent", amount=100, origin=f"{where}: start-first, all at once")
        if parallel.value is None:
            return Overlap(kind="unknown", reason=parallel.reason)
        return Overlap(kind="count", amount=parallel.value, origin=f"{where}: start-first")

    # -- interpolation ----------------------------------------------------------------------

    def _mapping(self, key: str) -> dict[str, Any]:
        found = self.service.get(key)
        return found if isinstance(found, dict) else {}

    def _variable(self, written: str, origin: str) -> Variable:
        text, missing = self._filled(written)
        if not missing:
            return Variable(text=text, origin=origin)
        reason = f"variable {missing[0]} has no value; give it with --parameters"
        return Variable(text=None, origin=origin, reason=reason, partly=text)

    def _text(self, found: Any) -> Any:
        """Replace `${NAME:-default}`; Unknown if a variable has no value."""
        if not isinstance(found, str):
            return found
        variable = self._variable(found, "")
        return Unknown(variable.reason) if variable.text is None else variable.text

    def _filled_in(self, found: Any) -> dict[str, Any]:
        """Return the texts of a mapping with their variables replaced."""
        texts = found if isinstance(found, dict) else {}
        return {
            key: self._filled(each, "?")[0] if isinstance(each, str) else each
            for key, each in texts.items()
        }

    def _filled(self, found: str, gap: str = "") -> tuple[str, list[str]]:
        """Replace variables, those without a value by `gap`; return the text, and their names."""
        missing: list[str] = []

        def value(match: re.Match[str]) -> str:
            name, operator, default = match[1] or match[4], match[2] or "", match[3] or ""
            known_value = self.variables.get(name)
            if operator.endswith("+"):
                return default if known_value else ""
            if known_value or (known_value == "" and not operator.startswith(":")):
                return known_value.replace("$", _DOLLAR)
            if operator.endswith("-"):
                return default
            missing.append(name)
            return gap

        text, before = found.replace("$$", _DOLLAR), ""
        while text != before:
            before, text = text, _VARIABLE.sub(value, text)
        return text.replace(_DOLLAR, "$"), missing


def _networks(document: Document, name: str, within: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """Return the networks of a service; two projects share one that has a name of its own."""
    service = document.data["services"].get(name) or {}
    mode = str(service.get("network_mode") or "")
    kind, _, other = mode.partition(":")
    if kind == "service" and other not in within:
        return _networks(document, other, (*within, name))
    if mode:
        alone: dict[str, set[tuple[str, str]]] = {"none": set(), "bridge": {("", "bridge")}}
        return alone.get(mode, {_ANY})
    found = set()
    for each in _listed(service.get("networks")) or ["default"]:
        network = get_path(document.data, "networks", each)
        shared = get_path(network, "name") or get_path(network, "external", "name")
        shared = shared or (each if get_path(network, "external") is True else None)
        folder = str(document.path.resolve().parent)
        found.add(("", str(shared)) if shared else (folder, str(each)))
    return found


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | dict) else []
