"""A template: what it declares, held against what it is given."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from poolkit.budget.read.documents import read_documents
from poolkit.budget.read.parameters import OUTPUT
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.budget.read.documents import Document

INLINE_LIMIT: Final = 51_200
"""Bytes of a template in a request; a larger one goes by way of S3 (CloudFormation User Guide,
"Understand CloudFormation quotas", Template body size in a request)."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """One CloudFormation template file."""

    name: str
    file: Path
    text: str = field(repr=False)
    document: Document = field(repr=False)

    @classmethod
    def read(cls, name: str, file: Path) -> Template:
        """Read a template.

        Raises:
            TemplateError: it is broken; file and line are named.
            DeployError: it is not there, or is no template.
        """
        if not file.is_file():
            raise DeployError(f"the template of {name} should be {file}, which is not there")
        documents = read_documents(file)
        if len(documents) != 1 or not isinstance(documents[0].data, dict):
            raise DeployError(f"{file} is not one template: it must be one YAML mapping")
        template = cls(
            name=name, file=file, text=file.read_text(encoding="utf-8"), document=documents[0]
        )
        if not template.section("Resources"):
            raise DeployError(f"{file} declares no Resources")
        return template

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of it, empty if it has none. Raises `DeployError`."""
        found = self.document.data.get(name) or {}
        if not isinstance(found, dict):
            raise DeployError(f"{self.document.where(name)}: {name} must be a mapping")
        return found

    @property
    def parameters(self) -> dict[str, Any]:
        """The declared parameters."""
        return self.section("Parameters")

    def require_parameters(self, given: dict[str, str], origin: Path) -> None:
        """Check that every given parameter is declared, and every one without a default given.

        Raises:
            DeployError: names the parameter, its line and where to give it.
        """
        for name, value in given.items():
            if name not in self.parameters:
                raise DeployError(
                    f"{origin}: [{self.name}] gives {name}, which {self.file} does not declare; "
                    f"it declares {', '.join(self.parameters) or 'none'}"
                )
            self._require_allowed(name, value, origin)
        for name, declared in self.parameters.items():
            if name not in given and "Default" not in (declared or {}):
                where = self.document.where("Parameters", name)
                raise DeployError(
                    f"{where}: parameter {name} has no default and no value; give it in "
                    f"[{self.name}] of {origin}, or with --parameter {name}=…"
                )

    def _require_allowed(self, name: str, value: str, origin: Path) -> None:
        if OUTPUT.search(value):
            return  # known when the other stack is deployed
        declared = self.parameters[name] or {}
        allowed = [_as_given(each) for each in declared.get("AllowedValues", ())]
        pattern = declared.get("AllowedPattern", "")
        if (allowed and value not in allowed) or (pattern and not re.fullmatch(pattern, value)):
            raise DeployError(
                f"{origin}: [{self.name}] {name} is {value!r}, but "
                f"{self.document.where('Parameters', name)} allows {pattern or ', '.join(allowed)}"
            )


def _as_given(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
