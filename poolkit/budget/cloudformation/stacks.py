"""CloudFormation stacks: parameters, conditions and intrinsic functions, as far as they go.

Intrinsic functions are those of the AWS CloudFormation Template Reference, "Intrinsic function
reference". What only a deployment can tell (an ARN, an address) stays a `Reference`; what a
missing parameter leaves open is `Unknown`, with the parameter's name and line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from poolkit.budget.quantity import Quantity, known, unknown
from poolkit.budget.read.values import (
    NO_VALUE,
    Joined,
    Reference,
    Unknown,
    as_text,
    joined,
    why_unknown,
)
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolkit.budget.read.documents import Document, SourceLocation, ValuePath

_VARIABLE = re.compile(r"\$\{(!?)([^}]*)\}")
_WHOLE = re.compile(r"[+-]?\d+(\.0+)?")


@dataclass(frozen=True)
class ParameterValue:
    """A parameter's value, and where it was given; the value may be another stack's output."""

    value: Any
    origin: str
    where: SourceLocation | None = None


@dataclass(frozen=True)
class Stack:
    """One template with its parameters.

    `imported` finds the value that another stack exports under a name; `output_of` an output
    of a nested stack, by the nested stack's logical id.
    """

    name: str
    document: Document
    template: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, ParameterValue]
    imported: Callable[[str], Any] = field(repr=False)
    output_of: Callable[[str, str, str], Any] = field(repr=False)
    region: str = ""
    _conditions: dict[str, bool | Unknown | None] = field(default_factory=dict, repr=False)
    _open_outputs: set[str] = field(default_factory=set, repr=False)

    # -- what is in it ----------------------------------------------------------------------

    def where(self, *steps: str | int) -> SourceLocation:
        """Return the place of a value in the template as it was written."""
        return self.document.where(*steps)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the template.

        Raises:
            TemplateError: it is there and no mapping.
        """
        found = self.template.get(name) or {}
        if not isinstance(found, dict):
            raise TemplateError(f"{self.where(name)}: {name} must be a mapping")
        return found

    @cached_property
    def resources(self) -> dict[str, Resource]:
        """Every resource whose condition is not false, by its logical id."""
        every = {
            name: Resource(self, name, found)
            for name, found in self.section("Resources").items()
            if isinstance(found, dict) and "Type" in found
        }
        return {name: each for name, each in every.items() if each.present is not False}

    def of_type(self, *types: str) -> Iterator[Resource]:
        """Give the resources of some types."""
        return (each for each in self.resources.values() if each.type in types)

    def output(self, name: str) -> Any:
        """Return the value of an output.

        Raises:
            TemplateError: there is none, or it leads back to itself.
        """
        outputs = self.section("Outputs")
        where = self.where("Outputs", name)
        if name not in outputs or not isinstance(outputs[name], dict):
            raise TemplateError(f"{where.file}: has no output {name}")
        if name in self._open_outputs:
            raise TemplateError(f"{where}: output {name} leads back to itself")
        condition = outputs[name].get("Condition")
        if condition is not None and self.condition(condition, where) is False:
            return Unknown(f"output {name} is not there ({where}: its condition is false)")
        self._open_outputs.add(name)
        try:
            return self.value(outputs[name].get("Value"), ("Outputs", name, "Value"))
        finally:
            self._open_outputs.discard(name)

    def exports(self, name: str) -> Any:
        """Return what this stack exports under a name, NO_VALUE if it does not."""
        for output, found in self.section("Outputs").items():
            export = found.get("Export", {}).get("Name") if isinstance(found, dict) else None
            if export is not None and self.value(export, ("Outputs", output, "Export")) == name:
                return self.output(output)
        return NO_VALUE

    # -- conditions -------------------------------------------------------------------------

    def condition(self, name: Any, where: SourceLocation) -> bool | Unknown:
        """Return whether a condition holds.

        Raises:
            TemplateError: there is no such condition, or it leads back to itself.
        """
        conditions = self.section("Conditions")
        if not isinstance(name, str) or name not in conditions:
            raise TemplateError(f"{where}: there is no condition {name!r}")
        if name not in self._conditions:
            self._conditions[name] = None
            found = self.value(conditions[name], ("Conditions", name))
            self._conditions[name] = _truth(found)
        result = self._conditions[name]
        if result is None:
            raise TemplateError(
                f"{self.where('Conditions', name)}: condition {name} leads back to itself"
            )
        return result

    # -- values -----------------------------------------------------------------------------

    def value(self, node: Any, steps: ValuePath) -> Any:
        """Return what a node comes to.

        Raises:
            TemplateError: a function is unknown or used wrongly; the message names the line.
        """
        if isinstance(node, list):
            each = [self.value(item, (*steps, n)) for n, item in enumerate(node)]
            return [item for item in each if item is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((name, argument),) = node.items()
            if name == "Ref" or name.startswith("Fn::") or name == "Condition":
                return self._call(name, argument, (*steps, name))
        return self._mapping(node, steps)

    def _mapping(self, node: dict[str, Any], steps: ValuePath) -> dict[str, Any]:
        each = {name: self.value(found, (*steps, name)) for name, found in node.items()}
        return {name: found for name, found in each.items() if found is not NO_VALUE}

    def _call(self, name: str, argument: Any, steps: ValuePath) -> Any:
        if name == "Condition":
            # Inside a policy document it is a key like any other.
            if not isinstance(argument, str):
                return self._mapping({name: argument}, steps[:-1])
            return self.condition(argument, self.where(*steps))
        function = _FUNCTIONS.get(name)
        if function is None:
            if name in _NEVER_A_NUMBER or name.startswith("Fn::ForEach"):
                return Unknown(f"{self.where(*steps)}: {name} is not evaluated")
            raise TemplateError(f"{self.where(*steps)}: unknown intrinsic function {name}")
        return function(self, argument, steps)

    def ref(self, name: Any, steps: ValuePath) -> Any:
        """Return what `Ref` gives: a parameter's value, or a reference to a resource.

        Raises:
            TemplateError: there is no such parameter or resource.
        """
        if isinstance(name, str):
            if name.startswith("AWS::"):
                return self._pseudo(name)
            if name in self.section("Parameters"):
                return self._parameter(name)
            if name in self.section("Resources"):
                return Reference(self.name, name)
        raise TemplateError(f"{self.where(*steps)}: {name!r} is neither a parameter nor a resource")

    def _pseudo(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return NO_VALUE
        if name == "AWS::StackName":
            return self.name
        if name == "AWS::Region" and self.region:
            return self.region
        return Unknown(f"{name} is known only where the stack is")

    def _parameter(self, name: str) -> Any:
        declared = self.section("Parameters")[name]
        where = self.where("Parameters", name)
        given = self.parameters.get(name)
        kind = declared.get("Type", "String") if isinstance(declared, dict) else "String"
        if given is None and (not isinstance(declared, dict) or "Default" not in declared):
            return Unknown(f"parameter {name} has no value ({where}); give it with --parameters")
        value = declared["Default"] if given is None else given.value
        value = value() if callable(value) else value
        if str(kind).startswith("AWS::SSM::Parameter::Value"):
            return Unknown(f"parameter {name} is read from Systems Manager ({where})")
        is_list = kind == "CommaDelimitedList" or str(kind).startswith("List<")
        if is_list and isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return as_text(value)

    # -- numbers ----------------------------------------------------------------------------

    def origin(self, node: Any, steps: ValuePath) -> str:
        """Return where a value comes from: its line, and that of the parameter behind it."""
        where = str(self.where(*steps))
        if not isinstance(node, dict) or len(node) != 1:
            return where
        ((function, argument),) = node.items()
        if function == "Ref" and argument in self.section("Parameters"):
            given = self.parameters.get(argument)
            source = given.origin if given else str(self.where("Parameters", argument, "Default"))
            return f"{where}, parameter {argument} from {source}"
        if function == "Fn::If":
            branch, inside = self.chosen(node, steps)
            return where if branch is node else self.origin(branch, inside)
        return where

    def chosen(self, node: Any, steps: ValuePath) -> tuple[Any, ValuePath]:
        """Follow `Fn::If` to the branch that holds; without one that is known, stay."""
        while isinstance(node, dict) and set(node) == {"Fn::If"} and len(node["Fn::If"]) == 3:
            holds = self.condition(node["Fn::If"][0], self.where(*steps))
            if not isinstance(holds, bool):
                break
            branch = 1 if holds else 2
            node, steps = node["Fn::If"][branch], (*steps, "Fn::If", branch)
        return node, steps

    def places(self, items: list[Any], steps: ValuePath) -> list[int]:
        """Return the places of those items of a list that do not come to AWS::NoValue."""
        nothing = {"Ref": "AWS::NoValue"}
        found = (self.chosen(item, (*steps, number))[0] for number, item in enumerate(items))
        return [number for number, item in enumerate(found) if item != nothing]


def _truth(value: Any) -> bool | Unknown:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    return Unknown(why_unknown(value) or "it is no condition")


@dataclass(frozen=True)
class Resource:
    """One resource; its properties are evaluated when they are first asked for."""

    stack: Stack
    logical_id: str
    definition: Mapping[str, Any] = field(repr=False)

    @property
    def type(self) -> str:
        """The type, such as AWS::ECS::Service."""
        return str(self.definition["Type"])

    @property
    def key(self) -> tuple[str, str]:
        """The resource among those of all stacks."""
        return self.stack.name, self.logical_id

    @cached_property
    def present(self) -> bool | Unknown:
        """Whether the resource's condition holds; True without one."""
        name = self.definition.get("Condition")
        return True if name is None else self.stack.condition(name, self.where("Condition"))

    @cached_property
    def properties(self) -> dict[str, Any]:
        """The evaluated properties; without those that come to AWS::NoValue."""
        found = self.stack.value(self.definition.get("Properties") or {}, self._steps())
        return found if isinstance(found, dict) else {}

    def _steps(self, *more: str | int) -> ValuePath:
        return ("Resources", self.logical_id, "Properties", *more)

    def where(self, *steps: str | int) -> SourceLocation:
        """Return the place of a property."""
        return self.stack.where(*self._written(steps)[1])

    def get(self, *steps: str | int) -> Any:
        """Return an evaluated property, None if it is not there; Unknown if one above it is."""
        return get_path(self.properties, *steps)

    def origin(self, *steps: str | int) -> str:
        """Return where a property's value comes from."""
        node, written = self._written(steps)
        return self.stack.origin(node, written)

    def _written(self, steps: ValuePath) -> tuple[Any, ValuePath]:
        """Follow the steps of an evaluated property through the template as it was written."""
        node: Any = self.definition.get("Properties") or {}
        written = self._steps()
        for step in steps:
            node, written = self.stack.chosen(node, written)
            try:
                if isinstance(node, list) and isinstance(step, int):
                    # What comes to AWS::NoValue is not counted any more.
                    step = self.stack.places(node, written)[step]  # noqa: PLW2901  (is renumbered)
                node, written = node[step], (*written, step)
            except (KeyError, IndexError, TypeError):
                return None, (*written, step)
        return node, written

    def quantity(self, *steps: str | int, default: int | None = None, why: str = "") -> Quantity:
        """Return a property as a whole number.

        Args:
            steps: the way to the property.
            default: what AWS takes where it is not there.
            why: what to say where it is not there and has no default, or of the default.

        Raises:
            TemplateError: it is negative, or no whole number.
        """
        found, where = self.get(*steps), self.where(*steps)
        if found is None:
            return unknown(why, where) if default is None else known(default, why, where)
        return whole_number(found, str(steps[-1]), self.origin(*steps), where)


def get_path(found: Any, *steps: str | int) -> Any:
    """Follow steps into dicts and lists; None where they lead nowhere."""
    for step in steps:
        if isinstance(found, Unknown):
            return found
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def whole_number(found: Any, name: str, origin: str, where: SourceLocation | None) -> Quantity:
    """Return a value as a whole number, or as unknown with the reason.

    Raises:
        TemplateError: it is negative, or no whole number.
    """
    if reason := why_unknown(found):
        return unknown(f"{name}: {reason}", where)
    if isinstance(found, str) and found.startswith("{{resolve:"):
        return unknown(f"{name} is resolved at deployment ({found.split(':', 2)[1]})", where)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    text = str(found).strip()
    if isinstance(found, bool) or not _WHOLE.fullmatch(text):
        raise TemplateError(f"{where}: {name} must be a whole number, not {found!r}")
    if float(text) < 0:
        raise TemplateError(f"{where}: {name} must not be negative, not {text}")
    return known(int(float(text)), origin, where)


# -- the functions --------------------------------------------------------------------------


def _arguments(stack: Stack, argument: Any, count: int, steps: ValuePath) -> list[Any]:
    if not isinstance(argument, list) or len(argument) != count:
        raise TemplateError(f"{stack.where(*steps)}: {steps[-1]} wants a list of {count}")
    return argument


def _get_att(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    if isinstance(argument, str):
        argument = argument.split(".", 1)
    if not isinstance(argument, list) or len(argument) < 2:
        raise TemplateError(f"{stack.where(*steps)}: Fn::GetAtt wants a resource and an attribute")
    name, attribute = argument[0], ".".join(str(part) for part in argument[1:])
    resource = stack.section("Resources").get(name)
    if not isinstance(resource, dict):
        raise TemplateError(f"{stack.where(*steps)}: there is no resource {name!r}")
    if resource.get("Type") == "AWS::CloudFormation::Stack" and attribute.startswith("Outputs."):
        return stack.output_of(stack.name, name, attribute.removeprefix("Outputs."))
    return Reference(stack.name, name, attribute)


def _sub(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    text, variables = argument, {}
    if isinstance(argument, list) and len(argument) == 2:
        text, variables = argument[0], stack.value(argument[1], (*steps, 1))
    if not isinstance(text, str) or not isinstance(variables, dict):
        raise TemplateError(f"{stack.where(*steps)}: Fn::Sub wants a text")
    parts: list[Any] = []
    end = 0
    for match in _VARIABLE.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
        literal, name = match.groups()
        parts.append(
            "${" + name + "}" if literal else _named(stack, name.strip(), variables, steps)
        )
    return joined([*parts, text[end:]])


def _named(stack: Stack, name: str, variables: Mapping[str, Any], steps: ValuePath) -> Any:
    if name in variables:
        return variables[name]
    if "." in name:
        return _get_att(stack, name, steps)
    return stack.ref(name, steps)


def _join(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    separator, parts = _arguments(stack, argument, 2, steps)
    parts = stack.value(parts, (*steps, 1))
    return parts if isinstance(parts, Unknown) else joined(_listed(parts), str(separator))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _if(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    name, *_ = _arguments(stack, argument, 3, steps)
    holds = stack.condition(name, stack.where(*steps))
    if isinstance(holds, bool):
        chosen = 1 if holds else 2
        return stack.value(argument[chosen], (*steps, chosen))
    both = [stack.value(argument[n], (*steps, n)) for n in (1, 2)]
    return both[0] if both[0] == both[1] else Unknown(f"condition {name}: {holds.reason}")


def _equals(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    _arguments(stack, argument, 2, steps)
    left, right = (as_text(stack.value(each, (*steps, n))) for n, each in enumerate(argument))
    if left == right:
        # Two unknowns with one reason need not be the same.
        return left if isinstance(left, Unknown) else True
    for one, other in ((left, right), (right, left)):
        # A resource that is there has a name that is not empty.
        if isinstance(one, Reference) and other == "":
            return False
        if why := why_unknown(one):
            return Unknown(why)
    return False


def _all(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    return _combined(stack, argument, steps, decisive=False)


def _any(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    return _combined(stack, argument, steps, decisive=True)


def _combined(stack: Stack, argument: Any, steps: ValuePath, *, decisive: bool) -> Any:
    """And, Or: one decisive operand settles it, whatever the unknown ones are."""
    found = [_truth(each) for each in _listed(stack.value(argument, steps))]
    if any(each is decisive for each in found):
        return decisive
    return next((each for each in found if isinstance(each, Unknown)), not decisive)


def _not(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    (operand,) = _arguments(stack, argument, 1, steps)
    found = _truth(stack.value(operand, (*steps, 0)))
    return found if isinstance(found, Unknown) else not found


def _find_in_map(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    if not isinstance(argument, list) or len(argument) not in (3, 4):
        raise TemplateError(f"{stack.where(*steps)}: Fn::FindInMap wants a map and two keys")
    found: Any = stack.section("Mappings")
    for number, written in enumerate(argument[:3]):
        key = as_text(stack.value(written, (*steps, number)))
        if why := why_unknown(key):
            return Unknown(why)
        if not isinstance(found, dict) or not isinstance(key, str) or key not in found:
            return _map_default(stack, argument, key, steps)
        found = found[key]
    return found


def _map_default(stack: Stack, argument: list[Any], key: Any, steps: ValuePath) -> Any:
    if len(argument) == 4 and isinstance(argument[3], dict) and "DefaultValue" in argument[3]:
        return stack.value(argument[3]["DefaultValue"], (*steps, 3))
    raise TemplateError(f"{stack.where(*steps)}: the mapping has no key {key!r}")


def _select(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    _arguments(stack, argument, 2, steps)
    index, items = (stack.value(each, (*steps, n)) for n, each in enumerate(argument))
    if why := why_unknown(index) or why_unknown(items):
        return Unknown(why)
    try:
        return items[int(index)]
    except (ValueError, IndexError, TypeError, KeyError):
        raise TemplateError(f"{stack.where(*steps)}: Fn::Select finds no item {index!r}") from None


def _split(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    separator, text = _arguments(stack, argument, 2, steps)
    text = stack.value(text, (*steps, 1))
    return (
        text.split(str(separator))
        if isinstance(text, str)
        else Unknown(why_unknown(text) or f"{stack.where(*steps)}: Fn::Split of what is no text")
    )


def _import_value(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    name = stack.value(argument, steps)
    if not isinstance(name, str):
        return Unknown(why_unknown(name) or f"{stack.where(*steps)}: no name to import")
    found = stack.imported(name)
    if found is NO_VALUE:
        return Unknown(f"no template given here exports {name!r} ({stack.where(*steps)})")
    return found


def _to_json(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    found = stack.value(argument, steps)
    try:
        return json.dumps(found)
    except TypeError:
        return Unknown(f"{stack.where(*steps)}: holds what is known once it is deployed")


def _length(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    found = stack.value(argument, steps)
    return len(found) if isinstance(found, list) else Unknown(why_unknown(found) or "no list")


def _passed_on(stack: Stack, argument: Any, steps: ValuePath) -> Any:
    found = stack.value(argument, steps)
    return Joined((found,))


_FUNCTIONS: dict[str, Callable[[Stack, Any, ValuePath], Any]] = {
    "Ref": lambda stack, argument, steps: stack.ref(argument, steps),
    "Fn::GetAtt": _get_att,
    "Fn::Sub": _sub,
    "Fn::Join": _join,
    "Fn::If": _if,
    "Fn::Equals": _equals,
    "Fn::And": _all,
    "Fn::Or": _any,
    "Fn::Not": _not,
    "Fn::FindInMap": _find_in_map,
    "Fn::Select": _select,
    "Fn::Split": _split,
    "Fn::ImportValue": _import_value,
    "Fn::ToJsonString": _to_json,
    "Fn::Length": _length,
    "Fn::Base64": _passed_on,
}
_NEVER_A_NUMBER = frozenset(
    {"Fn::Cidr", "Fn::GetAZs", "Fn::Transform", "Fn::GetStackOutput", "Fn::ForEach"}
    | {"Fn::Contains", "Fn::EachMemberEquals", "Fn::EachMemberIn", "Fn::RefAll", "Fn::ValueOf"}
    | {"Fn::ValueOfAll"}
)
