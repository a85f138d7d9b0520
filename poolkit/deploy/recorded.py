"""`poolkit deploy --back-to FILE`: the images and the package that ran when FILE was written.

FILE is the output of `poolkit status --json`. A pipeline writes it before a release, and returns to
it if the release does not pass its test. Only what a release replaces is taken from it: images by
digest, and a function's package. Everything else stays as it is described now.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.images import IMAGE_PARAMETER
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CODE: Final = frozenset({"CodeBucket", "CodeKey"})
"""The parameters that name a function's package in S3."""


def released(stack: Mapping[str, Any]) -> dict[str, str]:
    """Return those parameters of a deployed stack that a release replaces."""
    parameters = {p["ParameterKey"]: p["ParameterValue"] for p in stack.get("Parameters", ())}
    return {
        name: value
        for name, value in sorted(parameters.items())
        if value and (name in _CODE or name.endswith(IMAGE_PARAMETER))
    }


def read_recorded(file: Path, target: str, environment_name: str) -> tuple[str, ...]:
    """Return the recorded values of an environment's stacks, as `--parameter` takes them.

    Args:
        file: the output of `poolkit status --json`.
        target: a template's name, or "all". A stack that did not run then has no value.
        environment_name: the environment's.

    Raises:
        DeployError: the file cannot be read, is something else, or lacks all of these stacks.
    """
    environment = StackEnvironment.read(Project.find().root, environment_name)
    wanted = f"the output of `poolkit status --environment {environment.name} --json`"
    try:
        stacks = json.loads(file.read_text(encoding="utf-8"))["stacks"]
        found = {
            stack["template"]: dict(stack["released"] or {})
            for stack in stacks
            if stack["environment"] == environment.name
        }
    except OSError as error:
        raise DeployError(f"--back-to {file}: {error.strerror}; wanted {wanted}") from None
    except (ValueError, KeyError, TypeError):
        raise DeployError(f"--back-to {file} must be {wanted}, and is something else") from None
    values = tuple(
        f"{template}.{name}={value}"
        for template in environment.chosen(target)
        for name, value in found.get(template, {}).items()
    )
    if not values:
        raise DeployError(
            f"--back-to {file} records no image and no package of {target} in {environment.name}; "
            f"wanted {wanted}, written while they ran"
        )
    return values
