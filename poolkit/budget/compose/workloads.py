"""Compose files as workloads: services, replicas, variables and configuration files.

Source: the Compose Specification (deploy.replicas, scale, environment, env_file, configs,
interpolation, update_config). `docker compose up` stops a container before it starts the new
one; old and new run together under `update_config.order: start-first` only.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.budget.compose.files import put_together
from poolkit.budget.model import Description, Overlap, Variable, Workload, known, unknown
from poolkit.budget.read.documents import read_text, read_variables
from poolkit.budget.read.values import Unknown, as_text, get_path, whole_number
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import ParameterValue

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:?[-+?])([^{}]*))?\}|(\w+))")


def describe_compose(
    documents: Sequence[Document], given: Mapping[str, ParameterValue]
) -> Description:
    """Return every service of compose files as a workload.

    Raises:
        TemplateError: a file is wrong; the message names the line.
    """
    workloads = []
    for document in put_together(documents):
        file = document.path.parent / ".env"
        variables = read_variables(read_text(file)) if file.is_file() else {}
        variables |= {name: str(value.value) for name, value in given.items()}
        for name, service in document.data["services"].items():
            if not isinstance(service, dict):
                where = document.where("services", name)
                raise TemplateError(f"{where}: service {name} must be a mapping")
            workloads.append(_Service(document, name, service, variables).workload())
    return Description(workloads=tuple(workloads))


def _source(found: Any) -> str:
    """Return the source of a config or volume; the short form is `source:target`."""
    return str(found.get("source")) if isinstance(found, dict) else str(found).partition(":")[0]


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
        variables, unread = self._environment()
        words: list[str] = []
        for key in ("entrypoint", "command"):
            found = self.service.get(key)
            texts = found if isinstance(found, list) else [found] if found else []
            filled = [self._filled(str(each), "?")[0] for each in texts]
            try:
                # A text is split as Compose does it, which starts no shell.
                words += filled if isinstance(found, list) else shlex.split(" ".join(filled))
            except ValueError:
                words += filled
        own = document.where(*path)
        instances = known(1, f"{own}: 1, the default of replicas", own)
        for way in (("scale",), ("deploy", "replicas")):
            found = self._text(get_path(self.service, *way))
            if found is not None:
                where = document.where(*path, *way)
                instances = whole_number(found, way[-1], str(where), where)
        if get_path(self.service, "deploy", "mode") == "global":
            instances = unknown("mode global: one on every node", own)
        networks = self.service.get("networks")
        aliases = [
            str(alias)
            for network in (networks if isinstance(networks, dict) else ())
            for alias in document.items(*path, "networks", network, "aliases")
        ]
        keys = ("hostname", "container_name")
        own_names = [str(self.service[key]) for key in keys if key in self.service]
        mounted: dict[str, str] = {}
        for each in document.items(*path, "configs"):
            source = _source(each)
            target = str(get_path(each, "target") or source)
            config = document.mapping("configs", source)
            text = str(self._text(config.get("content") or self._file(config.get("file"))))
            mounted[target if target.endswith(".ini") else f"{target}.ini"] = text
        for each in document.items(*path, "volumes"):
            if (source := _source(each)).endswith((".ini", ".conf")):
                mounted[source] = self._file(source)
        return Workload(
            name=self.name,
            platform="compose service",
            unit="replica",
            where=own,
            instances=instances,
            overlap=self._overlap(),
            variables=variables,
            image=str(self._text(self.service.get("image") or "")),
            command=tuple(words) or None,
            command_origin=str(document.where(*path, "command")),
            unread_variables=unread,
            mounted=mounted,
            hosts=(self.name, *own_names, *aliases),
        )

    def _text(self, found: Any) -> Any:
        """Replace `${NAME:-default}`; Unknown if a variable has no value."""
        if not isinstance(found, str) or "$" not in found:
            return found
        text, missing = self._filled(found)
        if missing:
            return Unknown(f"variable {missing[0]} has no value; give it with --parameters")
        return text

    def _filled(self, found: str, gap: str = "") -> tuple[str, list[str]]:
        """Replace variables, those without a value by `gap`; return the text, and their names."""
        missing: list[str] = []

        def value(match: re.Match[str]) -> str:
            if match[1]:
                return "$"
            name, operator, default = match[2] or match[5], match[3] or "", match[4] or ""
            known_value = self.variables.get(name)
            if operator.endswith("+"):
                return default if known_value else ""
            if known_value or (known_value == "" and not operator.startswith(":")):
                return known_value
            if operator.endswith("-"):
                return default
            missing.append(name)
            return gap

        return _VARIABLE.sub(value, found), missing

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

    def _environment(self) -> tuple[dict[str, Variable], str]:
        """Return the variables, and the source of others that could not be read."""
        path = ("services", self.name, "environment")
        found: dict[str, Variable] = {}
        unread = ""
        files = self.service.get("env_file") or []
        for each in files if isinstance(files, list) else [files]:
            named = each.get("path", "") if isinstance(each, dict) else str(each)
            file = self.document.path.parent / named
            if not file.is_file():
                unread = f"{named} does not exist"
                continue
            for key, written in read_variables(read_text(file)).items():
                found[key] = Variable(text=written, origin=str(file))
        if "image" not in self.service and "build" not in self.service:
            unread = (
                "it has neither image nor build, so it is a part of another file's service: name "
                "the output of `docker compose config`"
            )
        for key, value in self.document.mapping(*path).items():
            origin = str(self.document.where(*path, key))
            text: Any = self._text(value)
            if value is None:  # passed on from the shell that starts it
                text = self.variables.get(key)
                if text is None:
                    text = Unknown(f"{key} is taken from the shell")
            if isinstance(text, Unknown):
                partly = _VARIABLE.sub("", str(value or ""))
                found[key] = Variable(text=None, origin=origin, reason=text.reason, partly=partly)
            else:
                found[key] = Variable(text=str(as_text(text)), origin=origin)
        return found, unread

    def _file(self, name: Any) -> str:
        file = self.document.path.parent / str(name)
        return read_text(file) if name and file.is_file() else ""
