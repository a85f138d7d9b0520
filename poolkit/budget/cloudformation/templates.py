"""The stacks of templates: which templates, in which environment, with which parameters.

SAM templates become the CloudFormation that they stand for, as far as connections depend on it.
SAM's own translator refuses templates that `sam build` completes (an image without ImageUri, a
function without CodeUri), and it asks AWS for published applications. So the few rules that decide
a number are here: the types, and Globals. Source: AWS SAM Developer Guide, "Globals section of the
AWS SAM template" (maps are merged, lists joined, other values replaced; IgnoreGlobals).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.evidence import types
from poolkit.budget.cloudformation.stacks import NESTED_STACK, Stack
from poolkit.budget.model import Unread
from poolkit.budget.read.documents import read_documents
from poolkit.budget.read.parameters import OUTPUT, Environment, ParameterValue, sam_parameters
from poolkit.budget.read.values import get_path, identity
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from poolkit.budget.model import SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath

_DEEPEST_NESTING = 8
_FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:ya?ml|json|template)\b")


@dataclass
class Stacks:
    """The stacks, by name; nested ones as `<parent>/<logical id>`."""

    by_name: dict[str, Stack] = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)
    inside: dict[Path, frozenset[Path]] = field(default_factory=dict)
    """The files that each template is nested in, directly or not."""

    def add(
        self, name: str, document: Document, given: Mapping[str, ParameterValue], region: str
    ) -> None:
        """Add the stack of a template, and the stacks nested in it.

        Raises:
            TemplateError: a template is broken, or stacks are nested too deeply.
        """
        document = _expanded(document)
        stack = Stack(
            name=name,
            document=document,
            template=document.data,
            parameters=given,
            others=self.by_name,
            region=region,
            unread=self.unread,
        )
        self.by_name[name] = stack
        self.unread += _unread_parts(stack)
        outer = self.inside.get(document.path, frozenset()) | {document.path}
        if len(outer) > _DEEPEST_NESTING:
            where = stack.where("Resources")
            problem = f"stacks are nested more than {_DEEPEST_NESTING} levels deep"
            raise TemplateError(problem, where)
        for resource in stack.of_type(NESTED_STACK):
            url = resource.get("TemplateURL") or resource.get("Location")  # the latter is SAM's
            path = _nested_file(document, resource.definition, identity(url))
            try:
                inner = read_documents(path) if path and path not in outer else []
                why = "" if inner and isinstance(inner[0].data, dict) else "it is no local file"
            except TemplateError as error:
                why = str(error)
            if why or path is None:
                shown = get_path(url, "ApplicationId") if isinstance(url, dict) else url
                shown = shown if isinstance(shown, str) else why
                reason = f"nested stack {resource.logical_id}: its template was not read ({shown})"
                self.unread.append(Unread(resource.where("TemplateURL"), reason))
                continue
            self.inside[path] = outer
            # A parameter may need an output of a stack that is added later, so it is looked up late.
            written = get_path(resource.definition, "Properties", "Parameters")
            values = {
                key: ParameterValue(
                    lambda resource=resource, key=key: resource.get("Parameters", key),
                    resource.origin("Parameters", key),
                    resource.where("Parameters", key),
                )
                for key in (written if isinstance(written, dict) else ())
            }
            self.add(f"{name}/{resource.logical_id}", inner[0], values, region)

    def drop_nested(self, roots: Mapping[str, Path]) -> None:
        """Drop the stacks of templates that are nested in others by a URL with parameters."""
        inner = {path.resolve() for path in self.inside}
        for root in (name for name, path in roots.items() if path in inner):
            for name in [each for each in self.by_name if f"{each}/".startswith(f"{root}/")]:
                del self.by_name[name]


def _unread_parts(stack: Stack) -> Iterator[Unread]:
    """Yield the parts of a template that may hold services, and that only AWS can expand."""
    transforms = stack.template.get("Transform") or []
    for each in transforms if isinstance(transforms, list) else [transforms]:
        name = each if isinstance(each, str) else str(get_path(each, "Name"))
        if name not in types()["transforms"]:
            reason = f"the macro {name} may add or change services, and only AWS can run it"
            yield Unread(stack.where("Transform"), reason)
    if stack.template.get("Modules"):
        yield Unread(stack.where("Modules"), "the templates of its modules are not read")
    for name, found in stack.section("Resources").items():
        kind = str(get_path(found, "Type"))
        is_included = isinstance(found, dict) and "Fn::Transform" in found
        if name.startswith("Fn::") or kind.endswith("::MODULE") or is_included:
            yield Unread(stack.where("Resources", name), f"{name}: only AWS can expand this part")
        elif kind in types()["unread"]:
            reason = f"{name}: {types()['unread'][kind]}"
            yield Unread(stack.where("Resources", name), reason)


def make_stacks(
    documents: Sequence[Document], environment: Environment, given: Mapping[str, ParameterValue]
) -> Stacks:
    """Return a stack of each template, with the parameters that the environment has for it.

    Raises:
        BudgetError: a parameter is given that no template has, or a template is missing.
        TemplateError: a template is broken.
    """
    stacks, roots = Stacks(), dict[str, Path]()
    nested = named_by_others(documents)
    for document in _in_order(documents, environment):
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
                raise TemplateError(f"{document.file} has no parameter {key}{hint}", value.where)
        sam = {} if given else sam_parameters(document.path.parent, environment.name)
        own = {key: value for key, value in {**sam, **given}.items() if key in declared}
        roots[name] = document.path.resolve()
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
    stacks.drop_nested(roots)
    return stacks


def _in_order(documents: Sequence[Document], environment: Environment) -> list[Document]:
    """Return the templates, each after those whose outputs its parameters name.

    A condition may need such a value while its stack is added.
    """
    needs = {
        template: {name for each in table.values() for name, _ in OUTPUT.findall(str(each.value))}
        for template, table in environment.tables.items()
    }

    def depth(name: str, above: frozenset[str] = frozenset()) -> int:
        # Templates that name each other in a circle keep their order.
        below = needs.get(name, set()) - above - {name}
        return 1 + max((depth(each, above | {name}) for each in below), default=0)

    return sorted(documents, key=lambda each: depth(each.path.name.split(".")[0]))


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _nested_file(document: Document, found: Any, url: str) -> Path | None:
    """Return the local file of a nested template: the CDK's asset, or what its URL ends in.

    A template is deployed from S3, and its file mostly stands in the same repository.
    """
    asset = get_path(found, "Metadata", "aws:asset:path")
    folder = document.path.parent
    for written in _FILE.findall(asset if isinstance(asset, str) else url):
        parts = written.split("/")
        # Beside the parent a name is enough; in folders above it, the end has a folder too.
        for above, least in ((".", 1), ("..", 2), ("../..", 2)):
            for number in range(len(parts) + 1 - least):
                path = Path(os.path.normpath(folder.joinpath(above, *parts[number:])))
                if path.is_file() and path.resolve() != document.path.resolve():
                    return path
    return None


def named_by_others(documents: Iterable[Document]) -> set[Path]:
    """Return the templates that are nested in another one, which are no stacks by themselves."""
    nested = set()
    for document in documents:
        for found in document.mapping("Resources").values():
            kind = str(get_path(found, "Type"))
            urls = [get_path(found, "Properties", key) for key in ("TemplateURL", "Location")]
            is_nested = types()["sam"].get(kind, kind) == NESTED_STACK
            file = _nested_file(document, found, json.dumps(urls)) if is_nested else None
            if file:
                nested.add(file.resolve())
    return nested


# -- SAM ------------------------------------------------------------------------------------


def _expanded(document: Document) -> Document:
    """Return a template with CloudFormation's types and with SAM's Globals in each resource."""
    resources = document.at("Resources")
    if not isinstance(resources, dict):
        return document
    made: dict[str, Any] = {}
    moved: dict[ValuePath, SourceLocation] = {}
    for name, found in resources.items():
        kind = str(get_path(found, "Type"))
        section = kind.removeprefix("AWS::Serverless::")
        if section == kind or kind not in types()["sam"]:
            made[name] = found
            continue
        own, ignored = found.get("Properties"), found.get("IgnoreGlobals") or []
        properties = own if isinstance(own, dict) else {}
        shared = document.at("Globals", section)
        if isinstance(shared, dict) and ignored != "*":
            shared = {key: value for key, value in shared.items() if key not in ignored}
            missing: list[ValuePath] = []
            properties = _merged(properties, shared, (), missing)
            for path in missing:
                place = document.where("Globals", section, *path)
                moved["Resources", name, "Properties", *path] = place
        made[name] = {**found, "Type": types()["sam"][kind], "Properties": properties}
    data = {**document.data, "Resources": made}
    return dataclasses.replace(document, data=data, elsewhere={**document.elsewhere, **moved})


def _merged(own: Any, shared: Any, path: ValuePath, missing: list[ValuePath]) -> Any:
    """Return a value with what Globals add to it; `missing` receives the paths of what they add."""
    if own is None:
        missing.append(path)
        return shared
    if _is_map(own) and _is_map(shared):
        more = {
            key: _merged(own.get(key), value, (*path, key), missing)
            for key, value in shared.items()
        }
        return {**own, **more}
    if isinstance(own, list) and isinstance(shared, list):
        return shared + own
    return own


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and not any(key[:4] in ("Ref", "Fn::") for key in value)
