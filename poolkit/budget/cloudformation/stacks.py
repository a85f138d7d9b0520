"""CloudFormation stacks and their resources, with parameters, conditions and functions evaluated.

A value that is known only after deployment (an ARN, an address) stays a `Reference`. What a missing
parameter leaves open is `Unknown`, with the parameter's name and line, and with the values that it
is about: a reference under an open condition still shows a client.

The end has the intrinsic functions, as far as they can be evaluated without AWS. Source: AWS
CloudFormation Template Reference, "Intrinsic function reference".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from poolkit.budget.model import ResourceKey, Unread, known, unknown
from poolkit.budget.read.parameters import OUTPUT
from poolkit.budget.read.values import (
    NO_VALUE,
    Joined,
    Reference,
    Unknown,
    as_text,
    get_path,
    identity,
    joined,
    walk,
    whole_number,
    why_unknown,
)
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from poolkit.budget.model import Quantity, SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath
    from poolkit.budget.read.parameters import ParameterValue

NESTED_STACK = "AWS::CloudFormation::Stack"
_NO_VALUE = {"Ref": "AWS::NoValue"}
_OPEN: Final = object()
"""The value of what is being evaluated."""


@dataclass(frozen=True)
class Stack:
    """One template with its parameters.

    `others` has all stacks by their names; nested ones as `<parent>/<logical id>`. `unread` collects
    what cannot be evaluated.
    """

    name: str
    document: Document
    template: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, ParameterValue]
    others: Mapping[str, Stack] = field(repr=False)
    region: str = ""
    unread: list[Unread] = field(default_factory=list, repr=False)
    _evaluated: dict[tuple[str, ...], Any] = field(default_factory=dict, repr=False)

    def where(self, *path: str | int) -> SourceLocation:
        """Return the location of a value in the template as it was written."""
        return self.document.where(*path)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the template.

        Raises:
            TemplateError: it is no mapping.
        """
        found = self.template.get(name) or {}
        if not isinstance(found, dict):
            raise TemplateError(f"{name} must be a mapping", self.where(name))
        return found

    @cached_property
    def resources(self) -> dict[str, Resource]:
        """Every resource whose condition is not false, by its logical id."""
        every = (
            Resource(self, name, found)
            for name, found in self.section("Resources").items()
            if isinstance(found, dict) and isinstance(found.get("Type"), str)
        )
        return {each.logical_id: each for each in every if each.present is not False}

    def of_type(self, *types: str) -> list[Resource]:
        """Return the resources of some types."""
        return [each for each in self.resources.values() if each.type in types]

    def referenced(self, value: Any) -> Resource | None:
        """Return the resource of this stack that a value is a reference to."""
        if isinstance(value, Reference) and value.stack == self.name:
            return self.resources.get(value.logical_id)
        return None

    def output(self, name: str) -> Any:
        """Return the value of an output; Unknown if the template has no such output.

        Raises:
            TemplateError: it refers to itself.
        """
        found, where = self.section("Outputs").get(name), self.where("Outputs", name)
        condition = get_path(found, "Condition")
        if not isinstance(found, dict):
            return Unknown(f"the template of {self.name} has no output {name}")
        if condition is not None and self.condition(condition, where) is False:
            return Unknown(f"output {name} does not exist ({where}: its condition is false)")
        return self._once(found.get("Value"), "Outputs", name, "Value")

    def condition(self, name: Any, where: SourceLocation) -> bool | Unknown:
        """Return whether a condition holds; an empty name always does, as in CloudFormation.

        Raises:
            TemplateError: it refers to itself.
        """
        conditions = self.section("Conditions")
        if name == "":
            return True
        label = name if isinstance(name, str) else "?"
        if label not in conditions:
            return Unknown(f"condition {label} has no rule ({where})")
        return _truth(self._once(conditions[name], "Conditions", name))

    def _once(self, node: Any, *path: str) -> Any:
        """Return the value of a condition or an output, which is evaluated on first use."""
        if path not in self._evaluated:
            self._evaluated[path] = _OPEN
            self._evaluated[path] = self.value(node, path)
        if self._evaluated[path] is _OPEN:
            kind = path[0].removesuffix("s").lower()
            raise TemplateError(f"{kind} {path[1]} refers to itself", self.where(*path[:2]))
        return self._evaluated[path]

    # -- values -----------------------------------------------------------------------------

    def value(self, node: Any, path: ValuePath) -> Any:
        """Return the value of a node, with its functions evaluated.

        Raises:
            TemplateError: a condition or an output refers to itself.
        """
        if isinstance(node, list):
            each = [self.value(item, (*path, n)) for n, item in enumerate(node)]
            return [item for item in each if item is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((name, argument),) = node.items()
            # Inside a policy document, Condition is a key like any other.
            if name == "Condition" and isinstance(argument, str):
                return self.condition(argument, self.where(*path, name))
            if name in _STACK_FUNCTIONS or name.startswith("Fn::"):
                return self._result(name, argument, (*path, name))
        values = {name: self.value(found, (*path, name)) for name, found in node.items()}
        return {name: found for name, found in values.items() if found is not NO_VALUE}

    def _result(self, name: str, argument: Any, path: ValuePath) -> Any:
        """Return the result of a function; Unknown if it cannot be evaluated here.

        A macro or a packager may replace an argument by one that no function takes.
        """
        found = argument
        try:
            if name == "Fn::If":
                node, at = self.chosen({name: argument}, path[:-1])
                return self._both(argument, path) if at == path[:-1] else self.value(node, at)
            found = self.value(argument, path)
            if name in _STACK_FUNCTIONS:
                return _STACK_FUNCTIONS[name](self, found, path)
            return _PLAIN_FUNCTIONS[name](found)
        except TemplateError:
            raise
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            reasons = [why for _, each in walk(found) if (why := why_unknown(each))]
            if not reasons or name not in _STACK_FUNCTIONS | _PLAIN_FUNCTIONS:
                reasons = [f"{name} cannot be evaluated ({self.where(*path)})"]
            return Unknown(reasons[0], (found,))

    def _both(self, branches: Any, path: ValuePath) -> Any:
        """Return both branches of an `Fn::If` whose condition is unknown, as one value."""
        name, one, other = branches
        both = (self.value(one, (*path, 1)), self.value(other, (*path, 2)))
        why = f"condition {name}: {why_unknown(self.condition(name, self.where(*path)))}"
        return both[0] if both[0] == both[1] else Unknown(why, both)

    def ref(self, name: Any, path: ValuePath) -> Any:
        """Return the result of `Ref`: a parameter's value, or a reference to a resource."""
        if isinstance(name, str) and name.startswith("AWS::"):
            pseudo = {"NoValue": NO_VALUE, "Region": self.region, "StackName": self.name}
            found = pseudo.get(name.removeprefix("AWS::"))
            return found or Unknown(f"{name} is known only after deployment")
        if isinstance(name, str) and name in self.section("Parameters"):
            return self._parameter(name)
        return self.reference(name, "Ref", path)

    def reference(self, name: Any, attribute: str, path: ValuePath) -> Any:
        """Return a reference to a resource; Unknown, and one more gap, if there is none."""
        resources = self.section("Resources")
        text = name if isinstance(name, str) else ""
        # SAM makes resources beside those that are written: FnRole, Fn.Alias, ServerlessRestApi.
        own = text if text in resources else text.partition(".")[0]
        if own in resources or (
            "Transform" in self.template
            and (text.startswith("Serverless") or any(map(text.startswith, resources)))
        ):
            return Reference(self.name, own, attribute)
        shown = text or "its argument"
        gap = Unread(self.where(*path), f"{shown} is neither a parameter nor a resource")
        if gap not in self.unread:
            self.unread.append(gap)
        return Unknown(f"{gap.reason} ({gap.where})")

    def _parameter(self, name: str) -> Any:
        declared = self.section("Parameters")[name]
        declared = declared if isinstance(declared, dict) else {}
        where, given = self.where("Parameters", name), self.parameters.get(name)
        kind = str(declared.get("Type", "String"))
        if given is None and "Default" not in declared:
            return Unknown(f"parameter {name} has no value ({where}); give it with --parameters")
        value = declared["Default"] if given is None else given.value
        value = value() if callable(value) else value
        if given is not None and isinstance(value, str):
            value = _replaced(OUTPUT, value, lambda match: self._named_output(match, given.where))
        if kind.startswith("AWS::SSM::Parameter::Value"):
            return Unknown(f"parameter {name} is read from Systems Manager ({where})", (value,))
        if (kind == "CommaDelimitedList" or kind.startswith("List<")) and isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return as_text(value)

    def _named_output(self, match: re.Match[str], where: SourceLocation | None) -> Any:
        """Return the output of another stack that an environment's file names."""
        found = self.others.get(match[1])
        if found is None or match[2] not in found.section("Outputs"):
            raise TemplateError(f"there is no template {match[1]} with an output {match[2]}", where)
        return found.output(match[2])

    # -- the sources of values -------------------------------------------------------------

    def origin(self, node: Any, path: ValuePath) -> str:
        """Return the source of a value: its line, and that of the parameter behind it."""
        node, path = self.chosen(node, path)
        where = str(self.where(*path))
        name = node.get("Ref") if isinstance(node, dict) and len(node) == 1 else None
        if not isinstance(name, str) or name not in self.section("Parameters"):
            return where
        given = self.parameters.get(name)
        source = given.origin if given else self.where("Parameters", name, "Default")
        return f"{where}, parameter {name} from {source}"

    def chosen(self, node: Any, path: ValuePath) -> tuple[Any, ValuePath]:
        """Follow `Fn::If` to the branch that holds, and stay if it is unknown which one does."""
        while isinstance(node, dict) and set(node) == {"Fn::If"}:
            branches = node["Fn::If"]
            if not isinstance(branches, list) or len(branches) != 3:
                break
            holds = self.condition(branches[0], self.where(*path))
            if not isinstance(holds, bool):
                break
            branch = 1 if holds else 2
            node, path = branches[branch], (*path, "Fn::If", branch)
        return node, path


@dataclass(frozen=True)
class Resource:
    """One resource; its properties are evaluated on first use, each by itself."""

    stack: Stack
    logical_id: str
    definition: Mapping[str, Any] = field(repr=False)
    _values: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def type(self) -> str:
        """The type, such as AWS::ECS::Service."""
        return str(self.definition["Type"])

    @property
    def key(self) -> ResourceKey:
        """The resource among those of all stacks."""
        return ResourceKey(self.stack.name, self.logical_id)

    @cached_property
    def present(self) -> bool | Unknown:
        """Whether the resource's condition holds; True without one."""
        name = self.definition.get("Condition")
        return True if name is None else self.stack.condition(name, self.where("Condition"))

    @property
    def properties(self) -> dict[str, Any]:
        """The evaluated properties, without those that are AWS::NoValue."""
        found = {name: self.get(name) for name in self._definitions}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def _definitions(self) -> dict[str, Any]:
        found = self.definition.get("Properties")
        return found if isinstance(found, dict) else {}

    def get(self, *path: str | int) -> Any:
        """Return an evaluated property, None if it is not set; Unknown if one above it is."""
        name = str(path[0])
        if name not in self._values:
            # One at a time: a nested stack's URL must not wait for its parameters.
            way = ("Resources", self.logical_id, "Properties", name)
            found = self.stack.value(self._definitions.get(name), way)
            self._values[name] = None if found is NO_VALUE else found
        return get_path(self._values[name], *path[1:])

    def where(self, *path: str | int) -> SourceLocation:
        """Return the location of a property."""
        return self.stack.where(*self._written(path)[1])

    def origin(self, *path: str | int) -> str:
        """Return the source of a property's value."""
        return self.stack.origin(*self._written(path))

    def _written(self, path: ValuePath) -> tuple[Any, ValuePath]:
        """Follow the path of an evaluated property through the template as it was written."""
        node: Any = self._definitions
        written: ValuePath = ("Resources", self.logical_id, "Properties")
        for step in path:
            node, written = self.stack.chosen(node, written)
            if isinstance(node, list) and isinstance(step, int):
                # Evaluated lists do not contain AWS::NoValue, so the indexes differ.
                chosen = (self.stack.chosen(item, (*written, n)) for n, item in enumerate(node))
                kept = [n for n, (item, _) in enumerate(chosen) if item != _NO_VALUE]
                step = dict(enumerate(kept)).get(step, step)  # noqa: PLW2901
            node, written = get_path(node, step), (*written, step)
        return node, written

    def quantity(self, *path: str | int, default: int | None = None, why: str = "") -> Quantity:
        """Return a property as a whole number.

        Args:
            path: the path to the property.
            default: the number that AWS takes if it is not set.
            why: the origin of the default, or the reason why there is none.

        Raises:
            TemplateError: it is negative, or no whole number.
        """
        found, where = self.get(*path), self.where(*path)
        if found is None:
            return unknown(why, where) if default is None else known(default, why, where)
        return whole_number(found, str(path[-1]), self.origin(*path), where)


# -- intrinsic functions -----------------------------------------------------------------
#
# They take evaluated arguments, and fail as Python does. `Stack.value` turns each failure into an
# Unknown: the argument is open, or no template that AWS accepts has it.

_VARIABLE = re.compile(r"\$\{(!?)([^}]*)\}")


def _replaced(pattern: re.Pattern[str], text: str, value_of: Callable[[re.Match[str]], Any]) -> Any:
    """Return a text with a value in place of each match."""
    parts, end = list[Any](), 0
    for match in pattern.finditer(text):
        parts += [text[end : match.start()], value_of(match)]
        end = match.end()
    return joined([*parts, text[end:]])


def _truth(value: Any) -> bool | Unknown:
    """Return a value as the result of a condition."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    return Unknown(why_unknown(value) or "it is not a condition")


def _combined(operands: Any, *, decisive: bool) -> bool | Unknown:
    """Return whether And or Or holds: one decisive operand is enough, whatever the others are."""
    found = [_truth(each) for each in operands]
    if any(each is decisive for each in found):
        return decisive
    return next((each for each in found if isinstance(each, Unknown)), not decisive)


def _equals(operands: Any) -> bool | Unknown:
    left, right = map(as_text, operands)
    # Two unknown values with one reason need not be equal.
    if left == right and not isinstance(left, Unknown):
        return True
    # The name of a resource is never empty.
    is_named = isinstance(left, Reference) or isinstance(right, Reference)
    why = why_unknown(left) or why_unknown(right)
    return Unknown(why) if why and not (is_named and "" in (left, right)) else False


_PLAIN_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "Fn::And": partial(_combined, decisive=False),
    # The text is not needed, and the references inside it still count.
    "Fn::Base64": lambda text: Joined((text,)),
    "Fn::Equals": _equals,
    "Fn::Join": lambda of: joined(list(of[1]), str(of[0])),
    "Fn::Length": len,
    "Fn::Not": lambda of: _equals([of[0], False]),
    "Fn::Or": partial(_combined, decisive=True),
    "Fn::Select": lambda of: of[1][int(of[0])],
    "Fn::Split": lambda of: of[1].split(of[0]),
    "Fn::ToJsonString": json.dumps,
}


def _get_att(stack: Stack, written: Any, path: ValuePath) -> Any:
    parts = written.split(".", 1) if isinstance(written, str) else written
    name, *attributes = map(as_text, parts)
    attribute = ".".join(attributes)
    is_nested = get_path(stack.section("Resources"), name, "Type") == NESTED_STACK
    if is_nested and attribute.startswith("Outputs."):
        child = stack.others.get(f"{stack.name}/{name}")
        why = f"the template of the nested stack {name} was not read"
        return child.output(attribute.removeprefix("Outputs.")) if child else Unknown(why)
    return stack.reference(name, attribute, path)


def _sub(stack: Stack, written: Any, path: ValuePath) -> Any:
    text, variables = (written, {}) if isinstance(written, str) else written

    def value_of(match: re.Match[str]) -> Any:
        name = match[2].strip()
        if match[1]:
            return f"${{{match[2]}}}"
        if name in variables:
            return variables[name]
        return _get_att(stack, name, path) if "." in name else stack.ref(name, path)

    return _replaced(_VARIABLE, text, value_of)


def _find_in_map(stack: Stack, written: Any, path: ValuePath) -> Any:
    keys = [as_text(each) for each in written[:3]]
    found = get_path(stack.section("Mappings"), *keys)
    if found is None and not any(map(why_unknown, keys)):
        found = get_path(written, 3, "DefaultValue")
    if found is None:
        raise LookupError(path)
    return found


def _import_value(stack: Stack, name: Any, path: ValuePath) -> Any:
    for other in list(stack.others.values()):
        for output, found in other.section("Outputs").items():
            export, at = get_path(found, "Export", "Name"), ("Outputs", output, "Export")
            if export is not None and identity(other.value(export, at)) == identity(name):
                return other.output(output)
    where = stack.where(*path)
    return Unknown(f"no template read here exports {identity(name)} ({where})")


_STACK_FUNCTIONS: dict[str, Callable[[Stack, Any, ValuePath], Any]] = {
    "Fn::FindInMap": _find_in_map,
    "Fn::GetAtt": _get_att,
    "Fn::ImportValue": _import_value,
    "Fn::Sub": _sub,
    "Ref": Stack.ref,
}
