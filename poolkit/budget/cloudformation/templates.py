"""All stacks of one deployment: which templates, in which environment, with which parameters."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.sam import TRANSFORM, expand
from poolkit.budget.cloudformation.stacks import Stack
from poolkit.budget.model import Unread
from poolkit.budget.read.documents import read_documents
from poolkit.budget.read.parameters import OUTPUT, Environment, ParameterValue
from poolkit.budget.read.values import NO_VALUE, Unknown, get_path, joined
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from poolkit.budget.read.documents import Document

_DEEPEST_NESTING = 8
_NESTED = {
    "AWS::CloudFormation::Stack": "TemplateURL",
    "AWS::Serverless::Application": "Location",
}


@dataclass
class Stacks:
    """The stacks, by name; nested ones as `<parent>/<logical id>`."""

    by_name: dict[str, Stack] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)

    def add(
        self, name: str, document: Document, given: Mapping[str, ParameterValue], region: str
    ) -> None:
        """Add the stack of a template, and the stacks nested in it.

        Raises:
            TemplateError: a template is broken, or stacks are nested too deeply.
        """
        parameters = {key: self._resolvable(value) for key, value in given.items()}
        template = document.data
        transforms = template.get("Transform") or []
        if TRANSFORM in (transforms if isinstance(transforms, list) else [transforms]):
            # SAM evaluates parameters in a few properties only, and takes no references.
            plain = {
                key: each.value for key, each in parameters.items() if not callable(each.value)
            }
            template = expand(document, plain, region)
        stack = Stack(
            name=name,
            document=document,
            template=template,
            parameters=parameters,
            imported=self.imported,
            output_of=self.nested_output,
            region=region,
        )
        self.by_name[name] = stack
        if name.count("/") >= _DEEPEST_NESTING:
            where = stack.where("Resources")
            raise TemplateError(
                f"{where}: stacks are nested more than {_DEEPEST_NESTING} levels deep"
            )
        for resource in stack.of_type("AWS::CloudFormation::Stack"):
            url = resource.get("TemplateURL")
            path = document.path.parent / str(url)
            if not isinstance(url, str) or not path.is_file():
                shown = url if isinstance(url, str) else "not a local file"
                reason = f"nested stack {resource.logical_id}: its template was not read ({shown})"
                self.unread.append(Unread(resource.where("TemplateURL"), reason))
                continue
            inner = {
                key: ParameterValue(
                    value, resource.origin("Parameters", key), resource.where("Parameters", key)
                )
                for key, value in (resource.get("Parameters") or {}).items()
            }
            self.add(f"{name}/{resource.logical_id}", read_documents(path)[0], inner, region)

    def _resolvable(self, given: ParameterValue) -> ParameterValue:
        """Replace a value that names another stack's output by a function that looks it up."""
        if not isinstance(given.value, str) or not OUTPUT.search(given.value):
            return given

        def value() -> Any:
            parts: list[Any] = []
            end = 0
            for match in OUTPUT.finditer(given.value):
                stack, name = match.groups()
                parts.append(given.value[end : match.start()])
                end = match.end()
                if stack not in self.by_name:
                    raise TemplateError(f"{given.where}: {match[0]}: there is no template {stack}")
                try:
                    parts.append(self.by_name[stack].output(name))
                except BudgetError as error:
                    raise TemplateError(f"{given.where}: {error}") from None
            parts = [part for part in [*parts, given.value[end:]] if part != ""]
            return parts[0] if len(parts) == 1 else joined(parts)

        return ParameterValue(value, given.origin, given.where)

    def nested_output(self, parent: str, logical_id: str, name: str) -> Any:
        """Return an output of a nested stack; Unknown if its template was not read."""
        child = self.by_name.get(f"{parent}/{logical_id}")
        if child is None:
            return Unknown(f"the template of the nested stack {logical_id} was not read")
        return child.output(name)

    def imported(self, name: str) -> Any:
        """Return what any stack exports under a name, NO_VALUE if none does."""
        for stack in list(self.by_name.values()):
            for output, found in stack.section("Outputs").items():
                export, path = get_path(found, "Export", "Name"), ("Outputs", output, "Export")
                if export is not None and stack.value(export, path) == name:
                    value = stack.output(output)
                    if value is not NO_VALUE:
                        return value
        return NO_VALUE


def make_stacks(
    documents: Sequence[Document], environment: Environment, given: Mapping[str, ParameterValue]
) -> Stacks:
    """Return a stack of each template, with the parameters that the environment has for it.

    Raises:
        BudgetError: a parameter is given that no template has, or a template is missing.
        TemplateError: a template is broken.
    """
    stacks = Stacks()
    nested = named_by_others(documents)
    for document in documents:
        if document.path.resolve() in nested:
            continue
        name = document.path.name.split(".")[0]
        if name in stacks.by_name:
            name = str(document.path.with_suffix(""))
        declared = document.mapping("Parameters")
        table = environment.tables.get(name, {})
        for key, value in table.items():
            if key not in declared:
                hint = _did_you_mean(key, declared)
                raise TemplateError(f"{value.where}: {document.file} has no parameter {key}{hint}")
        own = {key: value for key, value in given.items() if key in declared}
        stacks.add(name, document, {**table, **own}, environment.region)
    for name in environment.tables:
        if name not in stacks.by_name:
            raise BudgetError(f"{environment.file}: no template belongs to the table [{name}]")
    every = {name for each in documents for name in each.mapping("Parameters")}
    for key, value in given.items():
        # A JSON file may hold parameters of other templates too.
        if key not in every and not value.where:
            hint = _did_you_mean(key, every)
            raise BudgetError(f"{value.origin}: no template has a parameter {key}{hint}")
    return stacks


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def named_by_others(documents: Iterable[Document]) -> set[Path]:
    """Return the templates that are nested in another one, which are no stacks by themselves."""
    found = set()
    for document in documents:
        for name in document.mapping("Resources"):
            key = _NESTED.get(str(document.at("Resources", name, "Type")))
            url = document.at("Resources", name, "Properties", key) if key else None
            if isinstance(url, str):
                found.add((document.path.parent / url).resolve())
    return found
