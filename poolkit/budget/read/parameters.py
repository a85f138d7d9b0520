"""Parameters of the templates: an environment's TOML file, `--parameters`, JSON files.

An environment's file has a table for each template that it deploys, with the template's
parameters. A value `"{network.VpcId}"` is that output of the environment's stack of network.yaml.
The table `stack` holds `name_prefix` and `region`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import SourceLocation
from poolkit.budget.read.documents import read_documents, read_text
from poolkit.budget.read.values import get_path
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OUTPUT = re.compile(r"\{([A-Za-z0-9_-]+)\.([A-Za-z0-9]+)\}")
"""How an environment's file names the output of another stack."""
_TABLE = re.compile(r"\s*\[\s*\"?([\w-]+)\"?\s*\]")
_KEY = re.compile(r"\s*\"?([\w-]+)\"?\s*=")


@dataclass(frozen=True)
class ParameterValue:
    """A parameter's value and where it was given; `value` may be a function that looks it up."""

    value: Any
    origin: str
    where: SourceLocation | None = None
    """None: it was given on the command line."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An environment's file; `tables` is by the template's name."""

    name: str = ""
    file: str = ""
    prefix: str = ""
    region: str = ""
    tables: Mapping[str, Mapping[str, ParameterValue]] = field(default_factory=dict)

    def overridden(self, given: Mapping[str, Mapping[str, str]]) -> Environment:
        """Return it with other values of some parameters, by template."""
        tables = {template: dict(table) for template, table in self.tables.items()}
        for template, table in tables.items():
            for name, value in given.get(template, {}).items():
                table[name] = ParameterValue(value, f"--parameter {template}.{name}={value}")
        return dataclasses.replace(self, tables=tables)


def find_environment(name: str, folders: Iterable[Path]) -> Environment:
    """Read `environments/<name>.toml` from the first folder that has it.

    Raises:
        BudgetError: no folder has it.
        TemplateError: it is broken; the message names the line if there is one.
    """
    tried = [folder / "environments" / f"{name}.toml" for folder in folders]
    file = next((each for each in tried if each.is_file()), None)
    if file is None:
        known = sorted({each.stem for folder in tried for each in folder.parent.glob("*.toml")})
        has = f"; there is {', '.join(known)}" if known else ""
        raise BudgetError(f"environment {name}: there is no {' or '.join(map(str, tried))}{has}")
    text = read_text(file)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))  # the exception has no field for it
        where = SourceLocation(str(file), int(line[1]) if line else None)
        raise TemplateError(f"not valid TOML: {error}", where) from None
    # tomllib does not return lines, so the keys are searched for in the text.
    table, lines = "", dict[tuple[str, str], int]()
    for number, written in enumerate(text.splitlines(), 1):
        if heading := _TABLE.match(written):
            table = heading[1]
        elif key := _KEY.match(written):
            lines[table, key[1]] = number
    tables: dict[str, dict[str, ParameterValue]] = {}
    for table, values in found.items():
        if not isinstance(values, dict):
            raise TemplateError(f"{table} must be a table of parameters, not {values!r}", file)
        places = {key: SourceLocation(str(file), lines.get((table, key))) for key in values}
        tables[table] = {key: _from_file(values[key], where) for key, where in places.items()}
    stack = {key: str(each.value) for key, each in tables.pop("stack", {}).items()}
    prefix, region = stack.get("name_prefix", "poolkit"), stack.get("region", "")
    return Environment(name=name, file=str(file), prefix=prefix, region=region, tables=tables)


def _from_file(value: Any, where: SourceLocation) -> ParameterValue:
    # CloudFormation takes lists as text with commas.
    text = ",".join(str(each) for each in value) if isinstance(value, list) else value
    return ParameterValue(text, str(where), where)


def read_parameters(arguments: Iterable[str]) -> dict[str, ParameterValue]:
    """Read `Key=Value` arguments and JSON files; the last value of a parameter wins.

    A JSON file is an object of parameters, the list of `ParameterKey` and `ParameterValue` that
    the AWS command line takes, or an object with either of them under `Parameters`.

    Raises:
        BudgetError: an argument is neither.
        TemplateError: a file cannot be read.
    """
    given: dict[str, ParameterValue] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if separator:
            given[name.strip()] = ParameterValue(value, f"--parameters {argument}")
            continue
        file = Path(argument)
        if not file.is_file():
            problem = "neither Key=Value nor an existing JSON file"
            raise BudgetError(f"--parameters {argument}: {problem}")
        found: Any = [each.data for each in read_documents(file)]
        found, where = get_path(found, 0), SourceLocation(str(file))
        inner = get_path(found, "Parameters")
        found = inner if isinstance(inner, dict | list) else found
        if isinstance(found, list):
            names = [get_path(each, "ParameterKey") for each in found]
            texts = [get_path(each, "ParameterValue") for each in found]
            found = {name: text for name, text in zip(names, texts, strict=True) if name}
        if not isinstance(found, dict):
            raise TemplateError("must hold an object of parameters", where)
        given |= {key: _from_file(text, where) for key, text in found.items()}
    return given


def sam_parameters(folder: Path, environment: str) -> dict[str, ParameterValue]:
    """Return the parameters with which `sam deploy` deploys a template of a folder.

    Source: AWS SAM CLI, "Configuration file": `parameter_overrides` of the environment's table in
    samconfig.toml, without an environment of `default`, for `deploy` or for all commands.
    """
    file = folder / "samconfig.toml"
    try:
        config = tomllib.loads(read_text(file))
    except (TemplateError, tomllib.TOMLDecodeError):
        return {}
    given: dict[str, ParameterValue] = {}
    for command in ("global", "deploy"):
        path = (environment or "default", command, "parameters", "parameter_overrides")
        written = get_path(config, *path)
        words = shlex.split(written) if isinstance(written, str) else written or []
        for word in words:
            # The older form is ParameterKey=Name,ParameterValue=value.
            plain = str(word).removeprefix("ParameterKey=").replace(",ParameterValue=", "=", 1)
            name, separator, value = plain.partition("=")
            if separator:
                given[name] = ParameterValue(value, str(file), SourceLocation(str(file)))
    return given
