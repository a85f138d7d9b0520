"""Compose files as workloads: services, replicas, variables, networks and configuration files.

Source: the Compose Specification (deploy.replicas, deploy.mode, scale, environment, env_file, build,
configs, secrets, networks, interpolation, update_config). `docker compose up` stops a container
before it starts the new one; old and new run together under `update_config.order: start-first` only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.compose.dockerfiles import Stage, built_from, read_if_there, split, texts_in
from poolkit.budget.compose.files import put_together
from poolkit.budget.model import Description, Evidence, Overlap, Variable, Workload, known, unknown
from poolkit.budget.read.documents import read_text, read_variables
from poolkit.budget.read.values import Unknown, as_text, get_path, whole_number
from poolkit.budget.signs import hosts_in
from poolkit.budget.software import is_pooler, is_server
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from poolkit.budget.model import Quantity, SourceLocation
    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import ParameterValue
    from poolkit.budget.software import Software

# The innermost ${NAME:-default}, whose default holds no other; "$$" was taken out before.
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?:(:?[-+?])([^{}]*))?\}|(\w+))")
_DOLLAR = "\0"
# What a variable without a value leaves in a text.
_GAP = re.compile("\1(\\w+)\1")
_CONFIGURATION = re.compile(r".*\.(ini|conf|cnf|cfg|toml|ya?ml|env|properties|json)")
# The folders of a server's settings, and those of any other image.
_CONFIGURED = re.compile(r"conf|/etc/(my|postgres)")
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
    for each in together:
        file = each.path.parent / ".env"
        variables = read_variables(read_text(file)) if file.is_file() else {}
        variables |= {name: str(value.value) for name, value in given.items()}
        document = replace(each, data=_changed(each.data, partial(_filled, variables=variables)))
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
        build = _changed(self.service.get("build"), partial(_plain, gap="?"))
        stage = built_from(build) if isinstance(build, dict) else Stage()
        variables, unread = self._environment(stage)
        command, command_origin = self._command(stage)
        own = self._where()
        instances = known(1, f"{own}: 1, the default of replicas", own)
        for way in (("scale",), ("deploy", "replicas")):
            found = get_path(self.service, *way)
            if found is not None:
                instances = _number(found, way[-1], self._where(*way))
        if str(get_path(self.service, "deploy", "mode")).startswith("global"):
            instances = unknown("mode global: one on every node", own)
        networks = self._mapping("networks").values()
        aliases = [str(name) for each in networks for name in _listed(get_path(each, "aliases"))]
        keys = ("hostname", "container_name")
        own_names = [_plain(str(self.service[key])) for key in keys if key in self.service]
        image = _plain(str(self.service.get("image") or ""), "?")
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
            mounted=self._mounted(stage),
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
        where, is_network = self._where(key), key == "networks"
        return Evidence(reason=reason, where=where, hosts=server.hosts, is_network=is_network)

    def _command(self, stage: Stage) -> tuple[tuple[str, ...] | None, str]:
        """Return the words of entrypoint and command, its own or the Dockerfile's, and the origin."""
        own: dict[str, tuple[str, ...]] = {}
        for key in ("entrypoint", "command"):
            found = self.service.get(key)
            if isinstance(found, list):
                own[key] = tuple(_plain(str(each), "?") for each in found)
            elif found is not None:
                # A text is split as Compose does it, which starts no shell.
                own[key] = tuple(split(_plain(str(found), "?")))
        origin = self._where("command" if "command" in own else "entrypoint")
        if "entrypoint" in own:
            return own["entrypoint"] + own.get("command", ()) or None, str(origin)
        words = (stage.entrypoint or ()) + own.get("command", stage.command or ())
        return words or None, str(origin if "command" in own else stage.where or origin)

    def _mounted(self, stage: Stage) -> dict[str, str]:
        """Return the texts of its configuration files by their names; empty if one is not there."""
        mounted: dict[str, str] = {}
        changes = {"Dockerfile": stage.texts}
        for target, source in self._mapping("configs").items():
            config = self.document.mapping("configs").get(str(source))
            text = get_path(config, "content") or read_if_there(get_path(config, "file"))
            name = target if _CONFIGURATION.fullmatch(target) else f"{target}.ini"
            mounted[name] = _plain(str(text), "?")
        for target, source in self._mapping("volumes").items():
            file = Path(_plain(str(source)))
            # A folder of configuration: ./conf.d:/etc/mysql/conf.d.
            is_folder = _CONFIGURED.search(target) is not None
            if "initdb.d" in target:
                changes[target] = "\n".join(texts_in(file))
            elif is_folder and not file.exists():
                mounted[target] = ""
            for each in sorted(file.iterdir()) if is_folder and file.is_dir() else [file]:
                if _CONFIGURATION.fullmatch(each.name):
                    mounted[str(each)] = read_if_there(each)
        # Of scripts only this setting counts: they name no database of the service.
        for name, text in changes.items():
            lines = [line for line in text.splitlines() if re.search(r"max[-_]connections", line)]
            mounted |= {name: "\n".join(lines)} if lines else {}
        return mounted

    def _environment(self, stage: Stage) -> tuple[dict[str, Variable], str]:
        """Return the variables, and the source of others that could not be read."""
        found: dict[str, Variable] = dict(stage.variables)
        unread = ""
        for each in self.service.get("env_file") or ():
            file = Path(_plain(each))
            if not file.is_file():
                unread = f"{file} does not exist"
                continue
            for key, written in read_variables(read_text(file)).items():
                found[key] = _variable(_filled(written, self.variables), str(file))
        if not {"image", "build"} & self.service.keys():
            unread = (
                "it has neither image nor build, so it is a part of another file's service: name "
                "the output of `docker compose config`"
            )
        for key, value in self._mapping("environment").items():
            origin = str(self._where("environment", key))
            # Without a value it is passed on from the shell that starts it.
            passed_on = self.variables.get(key) if value is None else str(as_text(value))
            if passed_on is None:
                reason = f"{key} is taken from the shell"
                found[key] = Variable(text=None, origin=origin, reason=reason)
            else:
                found[key] = _variable(passed_on, origin)
        for name in self._mapping("secrets").values():
            # The names of mounted secrets are signs as those of variables are.
            origin = str(self._where("secrets"))
            found[f"secrets.{name}"] = Variable(text=None, origin=origin, reason="a secret")
        return found, unread

    def _overlap(self) -> Overlap:
        update = get_path(self.service, "deploy", "update_config")
        if not isinstance(update, dict) or update.get("order") != "start-first":
            return Overlap()
        where = self._where("deploy", "update_config")
        parallel = _number(update.get("parallelism", 1), "parallelism", where)
        if parallel.value == 0:
            return Overlap(kind="percent", amount=100, origin=f"{where}: start-first, all at once")
        if parallel.value is None:
            return Overlap(kind="unknown", reason=parallel.reason)
        return Overlap(kind="count", amount=parallel.value, origin=f"{where}: start-first")

    def _where(self, *path: str) -> SourceLocation:
        return self.document.where("services", self.name, *path)

    def _mapping(self, key: str) -> dict[str, Any]:
        found = self.service.get(key)
        return found if isinstance(found, dict) else {}


# -- interpolation --------------------------------------------------------------------------


def _changed(found: Any, change: Callable[[str], str]) -> Any:
    """Return a value with all texts in it changed."""
    if isinstance(found, dict):
        return {key: _changed(each, change) for key, each in found.items()}
    if isinstance(found, list):
        return [_changed(each, change) for each in found]
    return change(found) if isinstance(found, str) else found


def _filled(found: str, variables: Mapping[str, str]) -> str:
    """Replace `${NAME:-default}`; one without a value leaves a gap with its name."""

    def value(match: re.Match[str]) -> str:
        name, operator, default = match[1] or match[4], match[2] or "", match[3] or ""
        known_value = variables.get(name)
        if operator.endswith("+"):
            return default if known_value else ""
        if known_value or (known_value == "" and not operator.startswith(":")):
            return known_value.replace("$", _DOLLAR)
        return default if operator.endswith("-") else f"\1{name}\1"

    text, before = found.replace("$$", _DOLLAR), ""
    while text != before:
        before, text = text, _VARIABLE.sub(value, text)
    return text.replace(_DOLLAR, "$")


def _plain(text: str, gap: str = "") -> str:
    return _GAP.sub(gap, text)


def _variable(text: str, origin: str) -> Variable:
    if reason := _why_unknown(text):
        return Variable(text=None, origin=origin, reason=reason, partly=_plain(text))
    return Variable(text=text, origin=origin)


def _why_unknown(text: Any) -> str:
    """Return why a text is not known as a whole; empty if it is."""
    gap = _GAP.search(text) if isinstance(text, str) else None
    return f"variable {gap[1]} has no value; give it with --parameters" if gap else ""


def _number(found: Any, name: str, where: SourceLocation) -> Quantity:
    reason = _why_unknown(found)
    return whole_number(Unknown(reason) if reason else found, name, str(where), where)


# -- networks -------------------------------------------------------------------------------


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
