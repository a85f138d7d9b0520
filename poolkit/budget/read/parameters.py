"""Parameters of the templates: an environment's TOML file, `--parameters`, JSON files.

An environment's file has a table for each template it deploys, with the template's parameters;
a value `"{network.VpcId}"` is that output of the environment's stack of network.yaml. The table
`stack` holds `name_prefix` and `region`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.stacks import ParameterValue
from poolkit.budget.read.documents import SourceLocation
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OUTPUT = re.compile(r"\{([A-Za-z0-9_-]+)\.([A-Za-z0-9]+)\}")
"""How an environment's file names the output of another stack."""
_TABLE = re.compile(r"\s*\[\s*\"?([\w-]+)\"?\s*\]")
_KEY = re.compile(r"\s*\"?([\w-]+)\"?\s*=")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What an environment's file says; `tables` is by the template's name."""

    name: str = ""
    file: str = ""
    prefix: str = ""
    region: str = ""
    tables: Mapping[str, Mapping[str, ParameterValue]] = field(default_factory=dict)

    def overridden(self, given: Mapping[str, Mapping[str, str]]) -> Environment:
        """Return it with other values of some parameters, by template."""
        tables = {
            template: {**table, **_overrides(template, given.get(template, {}))}
            for template, table in self.tables.items()
        }
        return dataclasses.replace(self, tables=tables)


def _overrides(template: str, given: Mapping[str, str]) -> dict[str, ParameterValue]:
    return {
        name: ParameterValue(value, f"--parameter {template}.{name}={value}")
        for name, value in given.items()
    }


def find_environment(name: str, folders: Iterable[Path]) -> Environment:
    """Read `environments/<name>.toml` from the first folder that has it.

    Raises:
        BudgetError: none of them has it.
        TemplateError: it is broken; the message names the line where there is one.
    """
    tried = [folder / "environments" / f"{name}.toml" for folder in folders]
    for file in tried:
        if file.is_file():
            return _read_environment(name, file)
    raise BudgetError(f"environment {name}: there is no {' or '.join(map(str, tried))}")


def _read_environment(name: str, file: Path) -> Environment:
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        where = SourceLocation(str(file), int(line[1]) if line else None)
        raise TemplateError(f"{where}: not valid TOML: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{file}: cannot be read: {error}") from None
    lines = _lines(text)
    stack = found.pop("stack", {})
    for table, values in {"stack": stack, **found}.items():
        if not isinstance(values, dict):
            raise TemplateError(f"{file}: {table} must be a table of parameters, not {values!r}")
    return Environment(
        name=name,
        file=str(file),
        prefix=str(stack.get("name_prefix", "poolkit")),
        region=str(stack.get("region", "")),
        tables={
            table: {
                key: _given(value, str(file), lines.get((table, key)))
                for key, value in values.items()
            }
            for table, values in found.items()
        },
    )


def _given(value: Any, file: str, line: int | None = None) -> ParameterValue:
    where = SourceLocation(file, line)
    return ParameterValue(_listed(value), str(where), where)


def _listed(value: Any) -> Any:
    """CloudFormation takes lists as text with commas."""
    return ",".join(str(each) for each in value) if isinstance(value, list) else value


def _lines(text: str) -> dict[tuple[str, str], int]:
    """Find the line of each key: tomllib does not tell."""
    table, found = "", {}
    for number, line in enumerate(text.splitlines(), 1):
        if heading := _TABLE.match(line):
            table = heading[1]
        elif key := _KEY.match(line):
            found[table, key[1]] = number
    return found


def read_parameters(words: Iterable[str]) -> dict[str, ParameterValue]:
    """Read `Key=Value` words and JSON files, the later ones winning.

    A JSON file is an object of parameters, the list of `ParameterKey` and `ParameterValue` that
    the AWS command line takes, or an object with such under `Parameters`.

    Raises:
        BudgetError: a word is neither; or a file cannot be read.
    """
    found: dict[str, ParameterValue] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if separator:
            found[name.strip()] = ParameterValue(value, f"--parameters {word}")
        elif Path(word).is_file():
            found |= _of_json(Path(word))
        else:
            raise BudgetError(
                f"--parameters {word}: neither Key=Value nor a JSON file that is there"
            )
    return found


def _of_json(file: Path) -> dict[str, ParameterValue]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise TemplateError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"{file}: cannot be read: {error}") from None
    if isinstance(found, dict) and isinstance(found.get("Parameters"), dict | list):
        found = found["Parameters"]
    if isinstance(found, list):
        pairs = [each for each in found if isinstance(each, dict) and "ParameterKey" in each]
        found = {each["ParameterKey"]: each.get("ParameterValue") for each in pairs}
    if not isinstance(found, dict):
        raise TemplateError(f"{file}: wanted an object of parameters")
    return {name: _given(value, str(file)) for name, value in found.items()}
