"""The parameters of a stack: the file's, those of the command line, and which are kept.

A parameter of the command line stays until `--reset-parameter` takes it back: an image that CI
deployed is not replaced by the file's `:latest` when another parameter changes. CloudFormation
stores the values. The names, and what the file said at the time, are stored in the stack's
template, as `Poolkit` in its `Metadata`: they change and are rolled back together with the stack.
Tags could not do that, because CloudFormation copies them to every resource.

Metadata alone is no change for CloudFormation (User Guide, "Template Metadata section"). So a value
that equals the file's is not kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.images import IMAGE_PARAMETER
from poolkit.deploy.statuses import REVIEW
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

METADATA: Final = "Poolkit"
"""The key in the template's Metadata."""

IMAGES_REMEMBERED: Final = 10
"""How many earlier images of a stack `--rollback previous` can choose from."""

NOT_KEPT: Final = frozenset({"CodeKey"})
"""Parameters that each deployment computes anew; one that is given is for that deployment."""

_MASK: Final = "****"
"""What DescribeStacks returns for a parameter with NoEcho."""


# -- the command line -----------------------------------------------------------------------


def read_overrides(texts: Iterable[str], templates: list[str]) -> dict[str, dict[str, str]]:
    """Return `Name=Value`, or `template.Name=Value`, by template.

    Raises:
        DeployError: an argument is of another form, or its template is not deployed here.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in templates}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise DeployError(f"--parameter must be Name=Value, not {text!r}")
        template, parameter = _address("--parameter", name, text, templates)
        found[template][parameter] = value
    return found


def read_images(texts: Iterable[str], templates: list[str]) -> dict[str, dict[str, str]]:
    """Return `URI`, or `template=URI`, as the parameter ImageUri by template.

    Raises:
        DeployError: an argument is of another form, or its template is not deployed here.
    """
    found: dict[str, dict[str, str]] = {name: {} for name in templates}
    for text in texts:
        # "=" occurs in no reference to an image.
        template, separator, image = text.rpartition("=")
        if not image:
            raise DeployError(f"--image must be the URI of an image, not {text!r}")
        name = f"{template}.{IMAGE_PARAMETER}" if separator else IMAGE_PARAMETER
        template, parameter = _address("--image", name, text, templates)
        found[template][parameter] = image
    return found


def read_resets(texts: Iterable[str], templates: list[str]) -> dict[str, set[str]]:
    """Return `Name`, or `template.Name`, by template. Raises `DeployError`."""
    found: dict[str, set[str]] = {name: set() for name in templates}
    for text in texts:
        template, parameter = _address("--reset-parameter", text, text, templates)
        found[template].add(parameter)
    return found


def _address(option: str, name: str, text: str, templates: list[str]) -> tuple[str, str]:
    template, dot, parameter = name.rpartition(".")
    if not parameter:
        raise DeployError(f"{option} must be Name=Value, not {text!r}")
    if not dot and len(templates) > 1:
        separator = "=" if option == "--image" else "."
        raise DeployError(f"{option} {text}: name its template: TEMPLATE{separator}{text}")
    if dot and template not in templates:
        raise DeployError(
            f"{option} {text}: this command deploys {', '.join(templates)}, not {template}"
        )
    return template or templates[0], parameter


# -- what is known of a deployed stack ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a stack's template stores about the deployment that made it."""

    kept: dict[str, str | None] = field(default_factory=dict)
    """Parameters of the command line, with the text that the file had then; None: it had none."""
    images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Earlier images, by the parameter that took them, the newest first."""
    values: dict[str, str] = field(default_factory=dict)
    """The values of all parameters as they are deployed; masked where they are secret."""

    @classmethod
    def read(cls, cloudformation: Any, stack: dict[str, Any] | None) -> Record:
        """Return the record of a stack, an empty one of a stack that poolkit did not deploy.

        Args:
            cloudformation: the client.
            stack: as `find_stack` returns it.

        Raises:
            DeployError: AWS cannot be asked.
        """
        if stack is None or stack["StackStatus"] == REVIEW:
            return cls()
        with in_plain_words(f"reading the template of {stack['StackName']}"):
            summary = cloudformation.get_template_summary(StackName=stack["StackId"])
        values = {
            each["ParameterKey"]: each.get("ParameterValue", "")
            for each in stack.get("Parameters", ())
        }
        try:
            found = json.loads(summary.get("Metadata") or "{}")[METADATA]
            return cls(
                kept=dict(found.get("kept", {})),
                images={name: tuple(images) for name, images in found.get("images", {}).items()},
                values=values,
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(values=values)

    def with_images(self, images: dict[str, str]) -> Record:
        """Return the record after a deployment of these images: what they replace is added."""
        history = dict(self.images)
        for name, image in images.items():
            now = self.values.get(name, "")
            if now and now != image and "@" in now:
                rest = [each for each in history.get(name, ()) if each not in {now, image}]
                history[name] = (now, *rest)[:IMAGES_REMEMBERED]
        return replace(self, images=history)

    def put_into(self, text: str, file: Path) -> str:
        """Return a template's text with the record in its Metadata.

        Raises:
            DeployError: the template has Metadata on one line, where nothing can be added.
        """
        if not (self.kept or self.images):
            return text
        content = json.dumps({"kept": self.kept, "images": self.images}, sort_keys=True)
        heading = re.search(r"^Metadata:(.*)$", text, re.MULTILINE)
        if heading is None:
            return f"{text.rstrip()}\n\nMetadata:\n  {METADATA}: {content}\n"
        if heading[1].partition("#")[0].strip():
            raise DeployError(
                f"{file}: Metadata is on one line; write it as a block, because poolkit adds a "
                "key to it"
            )
        inner = re.compile(r"^( +)[^\s#]", re.MULTILINE).search(text, heading.end())
        indent = inner[1] if inner else "  "
        return f"{text[: heading.end()]}\n{indent}{METADATA}: {content}{text[heading.end() :]}"


# -- the values of a deployment -------------------------------------------------------------


class Chosen(NamedTuple):
    """The parameters that a deployment takes from the command line, and those kept from it."""

    given: dict[str, str]
    kept: dict[str, str]
    """Of earlier command lines; a secret one is masked."""
    record: Record
    """What is stored with this deployment, images apart."""

    @property
    def values(self) -> dict[str, str]:
        """Both together; they win over the environment's file."""
        return self.kept | self.given


def choose(
    record: Record,
    *,
    template: str,
    file: Path,
    declared: Iterable[str],
    table: dict[str, str],
    given: dict[str, str],
    reset: set[str],
) -> Chosen:
    """Return which parameters of the command line apply, of this one and of earlier ones.

    Args:
        record: of the deployed stack.
        template: the name of the template.
        file: the environment's file.
        declared: the parameters that the template declares.
        table: the file's parameters, references to other stacks unresolved.
        given: the parameters of this command line.
        reset: the parameters that are taken back.

    Raises:
        DeployError: the file changed a parameter that is kept, so either value may be meant; or a
            parameter is reset that is given, or that the template does not declare.
    """
    declared = set(declared)
    for name in sorted(reset):
        if name in given:
            raise DeployError(f"{template}.{name}: pass --parameter or --reset-parameter, not both")
        if name not in declared:
            raise DeployError(
                f"--reset-parameter {template}.{name}: the template does not declare it"
            )
    kept = {}
    for name, before in record.kept.items():
        if name in given or name in reset or name not in declared or name not in record.values:
            continue
        if table.get(name) != before:
            raise DeployError(
                f"{file}: [{template}] {name} was {_shown(before)} when {record.values[name]} was "
                f"given on the command line, and is {_shown(table.get(name))} now. To take the "
                f"file's: --reset-parameter {template}.{name}; to keep the other: "
                f"--parameter {template}.{name}={record.values[name]}"
            )
        kept[name] = record.values[name]
    new = {
        name: table.get(name)
        for name, value in given.items()
        if name not in NOT_KEPT and value != table.get(name)
    }
    stored = {name: record.kept[name] for name in kept} | new
    return Chosen(given, kept, replace(record, kept=stored))


def _shown(value: str | None) -> str:
    return "missing" if value is None else repr(value)


def is_masked(value: str) -> bool:
    """Return whether a value of a stack is a secret, which AWS does not return."""
    return value == _MASK


def as_arguments(values: dict[str, str]) -> list[dict[str, Any]]:
    """Return parameters as CreateChangeSet takes them; AWS keeps a value that it does not show."""
    return [
        {"ParameterKey": name, "UsePreviousValue": True}
        if is_masked(value)
        else {"ParameterKey": name, "ParameterValue": value}
        for name, value in sorted(values.items())
    ]
