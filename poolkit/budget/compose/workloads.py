"""Compose files: services, replicas, variables and configuration files.

Source: the Compose Specification (deploy.replicas, scale, environment, env_file, configs,
interpolation, update_config). `docker compose up` replaces a container after stopping it;
old and new run together under `update_config.order: start-first` only.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.stacks import get_path, whole_number
from poolkit.budget.model import Overlap, Variable, Workload
from poolkit.budget.quantity import Quantity, known
from poolkit.budget.read.env_files import read_variables
from poolkit.budget.read.values import Unknown
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from poolkit.budget.cloudformation.stacks import ParameterValue
    from poolkit.budget.read.documents import Document

_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:?[-+?])([^{}]*))?\}|(\w+))")


def compose_workloads(
    document: Document, given: Mapping[str, ParameterValue]
) -> Iterator[Workload]:
    """Give every service of a compose file.

    Raises:
        TemplateError: a number is negative or none, or a service is no mapping.
    """
    reading = _Reading(document, _dot_env(document) | {k: str(v.value) for k, v in given.items()})
    for name, service in document.data["services"].items():
        if not isinstance(service, dict):
            raise TemplateError(
                f"{document.where('services', name)}: service {name} must be a mapping"
            )
        yield reading.workload(name, service)


def _dot_env(document: Document) -> dict[str, str]:
    file = document.path.parent / ".env"
    return read_variables(_content(file)) if file.is_file() else {}


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{file}: cannot be read: {error}") from None


def _source(found: Any) -> str:
    """Return what a config or volume is of: its short form is `source:target`."""
    return str(found.get("source")) if isinstance(found, dict) else str(found).partition(":")[0]


def _split(*texts: str) -> list[str]:
    try:
        return [word for text in texts for word in shlex.split(text)]
    except ValueError:
        return list(texts)


class _Reading:
    """One file with the variables that its `${...}` are replaced by."""

    def __init__(self, document: Document, variables: Mapping[str, str]) -> None:
        self._document = document
        self._variables = variables

    def workload(self, name: str, service: dict[str, Any]) -> Workload:
        where = self._document.where("services", name)
        instances = self._instances(name, service)
        variables, unread = self._environment(name, service)
        return Workload(
            name=name,
            platform="compose service",
            where=where,
            instances=instances,
            overlap=self._overlap(name, service, instances),
            variables=variables,
            image=str(self._text(service.get("image") or "")),
            command=self._command(service),
            command_origin=str(self._document.where("services", name, "command")),
            unread_variables=unread,
            mounted=self._mounted(name, service),
            hosts=self._hosts(name, service),
        )

    def _text(self, found: Any) -> Any:
        """Replace `${NAME:-default}`; Unknown where a variable has no value."""
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
            known_value = self._variables.get(name)
            if operator.endswith("+"):
                return default if known_value else ""
            if known_value or (known_value == "" and not operator.startswith(":")):
                return known_value
            if operator.endswith("-"):
                return default
            missing.append(name)
            return gap

        return _VARIABLE.sub(value, found), missing

    def _instances(self, name: str, service: dict[str, Any]) -> Quantity:
        steps = ("services", name)
        if get_path(service, "deploy", "mode") == "global":
            return Quantity(
                value=None,
                origin="",
                reason="mode global: one on every node",
                where=self._document.where(*steps),
            )
        for way in (("deploy", "replicas"), ("scale",)):
            found = self._text(get_path(service, *way))
            if found is not None:
                where = self._document.where(*steps, *way)
                return whole_number(found, way[-1], str(where), where)
        return known(
            1, f"{self._document.where(*steps)}: no replicas given", self._document.where(*steps)
        )

    def _overlap(self, name: str, service: dict[str, Any], instances: Quantity) -> Overlap:
        update = get_path(service, "deploy", "update_config")
        if not isinstance(update, dict) or update.get("order") != "start-first":
            return Overlap()
        where = self._document.where("services", name, "deploy", "update_config")
        parallel = whole_number(
            self._text(update.get("parallelism", 1)), "parallelism", str(where), where
        )
        if parallel.value == 0:
            return Overlap(kind="percent", amount=100, origin=f"{where}: start-first, all at once")
        if parallel.value is None:
            return Overlap(kind="unknown", reason=parallel.reason)
        return Overlap(kind="count", amount=parallel.value, origin=f"{where}: start-first")

    def _environment(self, name: str, service: dict[str, Any]) -> tuple[dict[str, Variable], str]:
        found, unread = self._env_files(service)
        if "image" not in service and "build" not in service:
            unread = (
                "it has neither image nor build, so it is laid over another file's service: name "
                "what `docker compose config` prints"
            )
        for key, value in self._document.mapping("services", name, "environment").items():
            origin = str(self._document.where("services", name, "environment", key))
            found[key] = self._variable(key, value, origin)
        return found, unread

    def _variable(self, name: str, value: Any, origin: str) -> Variable:
        if value is None:  # passed on from the shell that starts it
            text = self._variables.get(name)
            reason = "" if text is not None else f"{name} is taken from the shell"
            return Variable(text=text, origin=origin, reason=reason)
        text = self._text(value)
        if isinstance(text, Unknown):
            partly = _VARIABLE.sub("", str(value))
            return Variable(text=None, origin=origin, reason=text.reason, partly=partly)
        return Variable(
            text=str(text).lower() if isinstance(text, bool) else str(text), origin=origin
        )

    def _env_files(self, service: dict[str, Any]) -> tuple[dict[str, Variable], str]:
        files = service.get("env_file") or []
        found: dict[str, Variable] = {}
        unread = ""
        for each in files if isinstance(files, list) else [files]:
            named = each.get("path", "") if isinstance(each, dict) else str(each)
            file = self._document.path.parent / named
            if not file.is_file():
                unread = f"{named} is not there"
                continue
            for key, text in read_variables(_content(file)).items():
                found[key] = Variable(text=text, origin=str(file))
        return found, unread

    def _command(self, service: dict[str, Any]) -> tuple[str, ...] | None:
        """Return the words; a text is split as Compose does it, which starts no shell."""
        words: list[str] = []
        for key in ("entrypoint", "command"):
            found = service.get(key)
            texts = found if isinstance(found, list) else [found] if found else []
            filled = [self._filled(str(each), "?")[0] for each in texts]
            words += filled if isinstance(found, list) else _split(*filled)
        return tuple(words) or None

    def _mounted(self, name: str, service: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in self._document.items("services", name, "configs"):
            source, target = _source(each), str(get_path(each, "target") or _source(each))
            config = self._document.mapping("configs", source)
            text = str(self._text(config.get("content") or self._file(config.get("file"))))
            found[target if target.endswith(".ini") else f"{target}.ini"] = text
        for each in self._document.items("services", name, "volumes"):
            source = _source(each)
            if source.endswith((".ini", ".conf")):
                found[source] = self._file(source)
        return found

    def _file(self, name: Any) -> str:
        file = self._document.path.parent / str(name)
        return _content(file) if name and file.is_file() else ""

    def _hosts(self, name: str, service: dict[str, Any]) -> tuple[str, ...]:
        networks = service.get("networks")
        named = list(networks) if isinstance(networks, dict) else []
        steps = ("services", name, "networks")
        aliases = [
            alias for each in named for alias in self._document.items(*steps, each, "aliases")
        ]
        own = [str(service[key]) for key in ("hostname", "container_name") if key in service]
        return (name, *own, *(str(alias) for alias in aliases))
