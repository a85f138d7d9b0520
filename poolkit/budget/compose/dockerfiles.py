"""The command, variables and base image of a local Dockerfile.

Source: the Dockerfile reference (FROM, ARG, ENV, CMD, ENTRYPOINT, here-documents).
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import SourceLocation, Variable
from poolkit.budget.read.documents import read_text
from poolkit.budget.read.values import get_path
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HERE_DOCUMENT = re.compile(r"<<-?['\"]?(\w+)['\"]?")
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?[^}]*\}|(\w+))")
_SETTINGS = re.compile(r".*\.(cnf|conf|sql|sh)")
_SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile, with everything that it has from the stages before it."""

    base_image: str = ""
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    where: SourceLocation | None = None
    """The line of its last CMD or ENTRYPOINT."""
    variables: Mapping[str, Variable] = field(default_factory=dict)
    texts: str = ""
    """The text of the Dockerfile and of the settings and scripts that it copies."""


def built_from(build: Mapping[str, Any]) -> Stage:
    """Return the stage that `build` of a compose service ends with, an empty one if it cannot be read."""
    file = Path(str(build["context"])) / str(build.get("dockerfile") or "Dockerfile")
    text = build.get("dockerfile_inline") or read_if_there(file)
    texts = [str(text), *_copied(str(text), str(build["context"]))]
    return replace(_last_stage(str(text), str(file), build), texts="\n".join(texts))


def read_if_there(name: Any) -> str:
    """Return the text of a file, empty if there is none that can be read."""
    file = Path(str(name or ""))
    try:
        return read_text(file) if file.is_file() else ""
    except TemplateError:
        return ""


def texts_in(file: Path) -> list[str]:
    """Return the texts of a file, or of the files in a folder, that may change a server's settings."""
    files = sorted(file.iterdir()) if file.is_dir() else [file]
    return [read_if_there(each) for each in files if _SETTINGS.fullmatch(each.name)]


def _copied(text: str, context: str) -> list[str]:
    """Return the texts of settings and scripts that COPY and ADD take from the context."""
    found: list[str] = []
    for _, name, rest in _instructions(text):
        sources = re.findall(r"[^\s\"',\[\]]+", rest)[:-1] if name in ("COPY", "ADD") else []
        for each in sources:
            # A source is relative to the context, and cannot leave it.
            pattern = re.sub(r"\*+", "*", each.lstrip("./")) or "*"
            found += [text for file in Path(context).glob(pattern) for text in texts_in(file)]
    return found


def split(text: str) -> list[str]:
    """Return the words of a text as a shell splits them; the text if a quotation mark has no end."""
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


def _last_stage(text: str, file: str, build: Mapping[str, Any]) -> Stage:
    given = build.get("args") or {}
    if isinstance(given, list):
        given = {key: text for key, _, text in (str(each).partition("=") for each in given)}
    arguments: dict[str, str] = {}
    stages: list[tuple[str, Stage]] = []
    target = str(build.get("target") or "").lower()
    has_command = False
    for line, name, rest in _instructions(text):
        if name == "FROM":
            if target and stages and stages[-1][0] == target:
                break
            words = [word for word in rest.split() if not word.startswith("--")]
            image = _filled(words[0], arguments) if words else ""
            own = words[2].lower() if len(words) > 2 else str(len(stages))
            before = next((each for key, each in stages if key == image.lower()), None)
            stages.append((own, before or Stage(base_image=image)))
            has_command = False
            continue
        if name == "ARG":
            key, _, value = rest.partition("=")
            written = get_path(given, key)
            arguments[key] = value.strip("'\"") if written is None else str(written)
        if not stages:
            continue
        own, stage = stages[-1]
        where = SourceLocation(file, line)
        if name == "CMD":
            stage, has_command = replace(stage, command=_words(rest), where=where), True
        elif name == "ENTRYPOINT":
            # It drops the CMD of the image that it is built from, not the one of its own stage.
            kept = stage.command if has_command else None
            stage = replace(stage, entrypoint=_words(rest), command=kept, where=where)
        elif name == "ENV":
            variables = _environment(rest, str(where), arguments, stage.variables)
            stage = replace(stage, variables=variables)
        stages[-1] = (own, stage)
    return stages[-1][1] if stages else Stage()


def _environment(
    rest: str, origin: str, arguments: Mapping[str, str], before: Mapping[str, Variable]
) -> dict[str, Variable]:
    """Return the variables after an ENV instruction: `ENV a=1 b="2 3"`, or the old `ENV a 1`."""
    variables = dict(before)
    words = split(rest)
    if words and "=" not in words[0]:
        words = [f"{words[0]}={' '.join(words[1:])}"]
    for word in words:
        key, _, value = word.partition("=")
        known = {name: each.text or "" for name, each in variables.items()}
        written = _filled(value, {**arguments, **known})
        reason = f"{key}: {written}" if _VARIABLE.search(written) else ""
        text = None if reason else written
        variables[key] = Variable(text=text, origin=origin, reason=reason)
    return variables


def _filled(words: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda m: values.get(m[1] or m[3]) or m[2] or m[0], words)


def _words(rest: str) -> tuple[str, ...]:
    """Return the words of CMD or ENTRYPOINT in its exec form or its shell form."""
    try:
        listed = json.loads(rest)
    except ValueError:
        listed = None
    is_exec = isinstance(listed, list) and all(isinstance(each, str) for each in listed)
    return tuple(listed) if is_exec else (*_SHELL, rest)


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, name and rest of each instruction, its lines joined."""
    start, parts, end = 0, list[str](), ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if end:
            end = "" if stripped == end else end
            continue
        if not stripped or stripped.startswith("#"):
            continue
        start = start or number
        parts.append(stripped.rstrip("\\`").strip())
        if stripped.endswith(("\\", "`")):
            continue
        name, _, rest = " ".join(parts).partition(" ")
        match = _HERE_DOCUMENT.search(rest) if name.upper() in ("RUN", "COPY") else None
        end = match[1] if match else ""
        yield start, name.upper(), rest.strip()
        start, parts = 0, []
