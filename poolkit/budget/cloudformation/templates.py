"""All stacks of one deployment: which templates, in which environment, with which parameters."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.sam import expand, is_sam
from poolkit.budget.cloudformation.stacks import ParameterValue, Stack
from poolkit.budget.read.documents import read_documents
from poolkit.budget.read.parameters import OUTPUT, Environment
from poolkit.budget.read.values import NO_VALUE, Unknown, joined
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from poolkit.budget.read.documents import Document, SourceLocation

_DEEPEST_NESTING = 8
_NESTED = {
    "AWS::CloudFormation::Stack": "TemplateURL",
    "AWS::Serverless::Application": "Location",
}


@dataclass(frozen=True)
class Unread:
    """Something that may hold services, and that could not be looked into."""

    where: SourceLocation
    reason: str


@dataclass
class Stacks:
    """The stacks, by name; nested ones as `<parent>/<logical id>`."""

    by_name: dict[str, Stack] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)

    def output(self, stack: str, name: str) -> Any:
        """Return an output of a stack.

        Raises:
            TemplateError: there is no such output.
            BudgetError: there is no such stack.
        """
        if stack not in self.by_name:
            raise BudgetError(f"{{{stack}.{name}}}: there is no template {stack}")
        return self.by_name[stack].output(name)

    def nested_output(self, parent: str, logical_id: str, name: str) -> Any:
        """Return an output of a nested stack; Unknown where its template was not read."""
        child = self.by_name.get(f"{parent}/{logical_id}")
        if child is None:
            return Unknown(f"the template of the nested stack {logical_id} was not read")
        return child.output(name)

    def imported(self, name: str) -> Any:
        """Return what any stack exports under a name, NO_VALUE if none does."""
        found = (stack.exports(name) for stack in list(self.by_name.values()))
        return next((each for each in found if each is not NO_VALUE), NO_VALUE)


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
        name = _stack_name(document, stacks)
        table = environment.tables.get(name, {})
        _refuse_unlisted(table, document)
        _add(stacks, name, document, {**table, **_of(document, given)}, environment.region)
    _refuse_missing(stacks, environment)
    _refuse_unknown(documents, given)
    return stacks


def _stack_name(document: Document, stacks: Stacks) -> str:
    name = document.path.name.split(".")[0]
    return name if name not in stacks.by_name else str(document.path.with_suffix(""))


def _of(document: Document, given: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    declared = document.mapping("Parameters")
    return {name: value for name, value in given.items() if name in declared}


def _refuse_unlisted(table: Mapping[str, ParameterValue], document: Document) -> None:
    declared = list(document.mapping("Parameters"))
    for name, value in table.items():
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TemplateError(f"{value.where}: {document.file} has no parameter {name}{hint}")


def _refuse_unknown(documents: Sequence[Document], given: Mapping[str, ParameterValue]) -> None:
    declared = {name for each in documents for name in each.mapping("Parameters")}
    for name, value in given.items():
        if name not in declared and not value.where:
            close = difflib.get_close_matches(name, declared, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise BudgetError(f"{value.origin}: no template has a parameter {name}{hint}")


def _refuse_missing(stacks: Stacks, environment: Environment) -> None:
    for name in environment.tables:
        if name not in stacks.by_name:
            raise BudgetError(f"{environment.file}: [{name}] is no template that was given")


def _add(
    stacks: Stacks, name: str, document: Document, given: Mapping[str, ParameterValue], region: str
) -> None:
    parameters = {key: _resolvable(value, stacks) for key, value in given.items()}
    template = document.data
    if is_sam(template):
        # SAM looks at parameters in a few properties only, and takes no references.
        plain = {key: each.value for key, each in parameters.items() if not callable(each.value)}
        template = expand(document, plain, region)
    stack = Stack(
        name=name,
        document=document,
        template=template,
        parameters=parameters,
        imported=stacks.imported,
        output_of=stacks.nested_output,
        region=region,
    )
    stacks.by_name[name] = stack
    _add_nested(stacks, stack, region)


def _resolvable(given: ParameterValue, stacks: Stacks) -> ParameterValue:
    """Let a value that names another stack's output be looked up when it is needed."""
    if not isinstance(given.value, str) or not OUTPUT.search(given.value):
        return given
    return ParameterValue(_looked_up(given, stacks), given.origin, given.where)


def _looked_up(given: ParameterValue, stacks: Stacks) -> Callable[[], Any]:
    def value() -> Any:
        parts: list[Any] = []
        end = 0
        for match in OUTPUT.finditer(given.value):
            parts += [given.value[end : match.start()], _output(stacks, given, *match.groups())]
            end = match.end()
        parts = [part for part in [*parts, given.value[end:]] if part != ""]
        return parts[0] if len(parts) == 1 else joined(parts)

    return value


def _output(stacks: Stacks, given: ParameterValue, stack: str, name: str) -> Any:
    try:
        return stacks.output(stack, name)
    except BudgetError as error:
        raise TemplateError(f"{given.where}: {error}") from None


# -- nested stacks --------------------------------------------------------------------------


def _add_nested(stacks: Stacks, parent: Stack, region: str) -> None:
    if parent.name.count("/") >= _DEEPEST_NESTING:
        where = parent.where("Resources")
        raise TemplateError(f"{where}: stacks are nested more than {_DEEPEST_NESTING} deep")
    for resource in parent.of_type("AWS::CloudFormation::Stack"):
        url = resource.get("TemplateURL")
        path = parent.document.path.parent / str(url)
        if not isinstance(url, str) or not path.is_file():
            shown = url if isinstance(url, str) else "not a local file"
            reason = f"nested stack {resource.logical_id}: its template was not read ({shown})"
            stacks.unread.append(Unread(resource.where("TemplateURL"), reason))
            continue
        found = resource.get("Parameters") or {}
        given = {
            name: ParameterValue(
                value, resource.origin("Parameters", name), resource.where("Parameters", name)
            )
            for name, value in found.items()
        }
        (document, *_) = read_documents(path)
        _add(stacks, f"{parent.name}/{resource.logical_id}", document, given, region)


def named_by_others(documents: Iterable[Document]) -> set[Path]:
    """Find the templates that are nested in another one: they are no stacks by themselves."""
    return {
        (document.path.parent / url).resolve()
        for document in documents
        for name in document.mapping("Resources")
        for url in (_local_url(document, name),)
        if isinstance(url, str)
    }


def _local_url(document: Document, name: str) -> Any:
    key = _NESTED.get(str(document.at("Resources", name, "Type")))
    return document.at("Resources", name, "Properties", key) if key else None
