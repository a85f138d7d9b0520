"""CloudFormation stacks and their resources, with parameters, conditions and functions evaluated.

A value that is known only after deployment (an ARN, an address) stays a `Reference`. What a missing
parameter leaves open is `Unknown`, with the parameter's name and line, and with the values that it
is about: a reference under an open condition still shows a client.

The second half has the intrinsic functions, as far as they can be evaluated without AWS. Source: AWS
CloudFormation Template Reference, "Intrinsic function reference". Each takes the stack, the
argument as it was written, and the path of the call for messages.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from poolkit.budget.model import ResourceKey, Unread, known, unknown
from poolkit.budget.read.values import (
    NO_VALUE,
    Joined,
    Reference,
    Unknown,
    as_text,
    get_path,
    identity,
    joined,
    whole_number,
    why_unknown,
)
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolkit.budget.model import Quantity, SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath
    from poolkit.budget.read.parameters import ParameterValue

NESTED_STACK = "AWS::CloudFormation::Stack"
_NO_VALUE = {"Ref": "AWS::NoValue"}


@dataclass(frozen=True)
class Stack:
    """One template with its parameters.

    `imported` finds the value that another stack exports under a name; `output_of` an output
    of a nested stack, by the nested stack's logical id. `unread` collects what cannot be evaluated.
    """

    name: str
    document: Document
    template: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, ParameterValue]
    imported: Callable[[str], Any] = field(repr=False)
    output_of: Callable[[str, str, str], Any] = field(repr=False)
    region: str = ""
    unread: list[Unread] = field(default_factory=list, repr=False)
    _conditions: dict[str, bool | Unknown | None] = field(default_factory=dict, repr=False)
    _open_outputs: set[str] = field(default_factory=set, repr=False)

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
        every = {
            name: Resource(self, name, found)
            for name, found in self.section("Resources").items()
            if isinstance(found, dict) and isinstance(found.get("Type"), str)
        }
        return {name: each for name, each in every.items() if each.present is not False}

    @cached_property
    def _by_type(self) -> dict[str, list[Resource]]:
        found: dict[str, list[Resource]] = {}
        for each in self.resources.values():
            found.setdefault(each.type, []).append(each)
        return found

    def of_type(self, *types: str) -> Iterator[Resource]:
        """Return the resources of some types."""
        return itertools.chain.from_iterable(self._by_type.get(each, ()) for each in types)

    def referenced(self, value: Any) -> Resource | None:
        """Return the resource of this stack that a value is a reference to."""
        if isinstance(value, Reference) and value.stack == self.name:
            return self.resources.get(value.logical_id)
        return None

    def output(self, name: str) -> Any:
        """Return the value of an output.

        Raises:
            TemplateError: there is none, or it refers to itself.
        """
        outputs = self.section("Outputs")
        where = self.where("Outputs", name)
        if name not in outputs or not isinstance(outputs[name], dict):
            raise TemplateError(f"there is no output {name}", where)
        if name in self._open_outputs:
            raise TemplateError(f"output {name} refers to itself", where)
        condition = outputs[name].get("Condition")
        if condition is not None and self.condition(condition, where) is False:
            return Unknown(f"output {name} does not exist ({where}: its condition is false)")
        self._open_outputs.add(name)
        try:
            return self.value(outputs[name].get("Value"), ("Outputs", name, "Value"))
        finally:
            self._open_outputs.discard(name)

    def condition(self, name: Any, where: SourceLocation) -> bool | Unknown:
        """Return whether a condition holds; an empty name always does, as in CloudFormation.

        Raises:
            TemplateError: it refers to itself.
        """
        conditions = self.section("Conditions")
        if name == "":
            return True
        if not isinstance(name, str) or name not in conditions:
            return Unknown(
                f"condition {name if isinstance(name, str) else '?'} has no rule ({where})"
            )
        if name not in self._conditions:
            self._conditions[name] = None
            self._conditions[name] = as_truth(self.value(conditions[name], ("Conditions", name)))
        result = self._conditions[name]
        if result is None:
            where = self.where("Conditions", name)
            raise TemplateError(f"condition {name} refers to itself", where)
        return result

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
            if name in FUNCTIONS or name.startswith("Fn::"):
                return self._result(name, argument, (*path, name))
        values = {name: self.value(found, (*path, name)) for name, found in node.items()}
        return {name: found for name, found in values.items() if found is not NO_VALUE}

    def _result(self, name: str, argument: Any, path: ValuePath) -> Any:
        """Return the result of a function; Unknown if only AWS or a macro can evaluate it."""
        if name not in FUNCTIONS:
            return Unknown(f"{name} is not evaluated", (self.value(argument, path),))
        try:
            return FUNCTIONS[name](self, argument, path)
        except TemplateError:
            raise
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            # A macro or a packager may replace an argument that no function takes.
            return Unknown(f"{name} cannot be evaluated ({self.where(*path)})")

    def ref(self, name: Any, path: ValuePath) -> Any:
        """Return the result of `Ref`: a parameter's value, or a reference to a resource."""
        if name == "AWS::NoValue":
            return NO_VALUE
        if name == "AWS::StackName":
            return self.name
        if name == "AWS::Region" and self.region:
            return self.region
        if isinstance(name, str):
            if name.startswith("AWS::"):
                return Unknown(f"{name} is known only after deployment")
            if name in self.section("Parameters"):
                return self._parameter(name)
        return self.reference(name, "Ref", path)

    def reference(self, name: Any, attribute: str, path: ValuePath) -> Any:
        """Return a reference to a resource; Unknown, and one more gap, if there is none."""
        resources = self.section("Resources")
        if isinstance(name, str):
            # SAM makes resources beside those that are written: FnRole, Fn.Alias, ServerlessRestApi.
            if name in resources or (base := name.split(".")[0]) in resources:
                return Reference(self.name, name if name in resources else base, attribute)
            made = (each for each in resources if name.startswith(each))
            if "Transform" in self.template and (name.startswith("Serverless") or any(made)):
                return Reference(self.name, name, attribute)
        shown = name if isinstance(name, str) else "its argument"
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
        if kind.startswith("AWS::SSM::Parameter::Value"):
            return Unknown(f"parameter {name} is read from Systems Manager ({where})", (value,))
        if (kind == "CommaDelimitedList" or kind.startswith("List<")) and isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return as_text(value)

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
            try:
                if isinstance(node, list) and isinstance(step, int):
                    # Evaluated lists do not contain AWS::NoValue, so the indexes differ.
                    chosen = (self.stack.chosen(item, (*written, n)) for n, item in enumerate(node))
                    places = [n for n, (item, _) in enumerate(chosen) if item != _NO_VALUE]
                    step = places[step]  # noqa: PLW2901
                node, written = node[step], (*written, step)
            except (KeyError, IndexError, TypeError):
                return None, (*written, step)
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

_VARIABLE = re.compile(r"\$\{(!?)([^}]*)\}")
Function: TypeAlias = "Callable[[Stack, Any, ValuePath], Any]"
FUNCTIONS: dict[str, Function] = {"Ref": Stack.ref}
"""The functions that are evaluated, by name."""


def _evaluates(*names: str) -> Callable[[Function], Function]:
    """Register a function under its names in CloudFormation."""

    def register(function: Function) -> Function:
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function

    return register


def as_truth(value: Any) -> bool | Unknown:
    """Return a value as the result of a condition."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    return Unknown(why_unknown(value) or "it is not a condition")


@_evaluates("Fn::GetAtt")
def _get_att(stack: Stack, argument: Any, path: ValuePath) -> Any:
    written = argument.split(".", 1) if isinstance(argument, str) else argument
    name, *attributes = (as_text(stack.value(part, (*path, n))) for n, part in enumerate(written))
    attribute = ".".join(attributes)
    resource = stack.section("Resources").get(name) if isinstance(name, str) else None
    if attribute.startswith("Outputs.") and get_path(resource, "Type") == NESTED_STACK:
        return stack.output_of(stack.name, name, attribute.removeprefix("Outputs."))
    return stack.reference(name, attribute, path)


@_evaluates("Fn::Sub")
def _sub(stack: Stack, argument: Any, path: ValuePath) -> Any:
    is_text = isinstance(argument, str)
    variables = {} if is_text else stack.value(argument[1], (*path, 1))
    first, *rest = _VARIABLE.split(argument if is_text else argument[0])
    parts: list[Any] = [first]
    for literal, written, text in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        name = written.strip()
        if literal:
            parts.append(f"${{{written}}}")
        elif name in variables:
            parts.append(variables[name])
        else:
            parts.append(_get_att(stack, name, path) if "." in name else stack.ref(name, path))
        parts.append(text)
    return joined(parts)


@_evaluates("Fn::Join")
def _join(stack: Stack, argument: Any, path: ValuePath) -> Any:
    separator, parts = argument
    parts = stack.value(parts, (*path, 1))
    if isinstance(parts, Unknown):
        return parts
    return joined(parts if isinstance(parts, list) else [parts], str(separator))


@_evaluates("Fn::If")
def _if(stack: Stack, argument: Any, path: ValuePath) -> Any:
    name, *_ = argument
    holds = stack.condition(name, stack.where(*path))
    if isinstance(holds, bool):
        chosen = 1 if holds else 2
        return stack.value(argument[chosen], (*path, chosen))
    both = tuple(stack.value(argument[n], (*path, n)) for n in (1, 2))
    return both[0] if both[0] == both[1] else Unknown(f"condition {name}: {holds.reason}", both)


@_evaluates("Fn::Equals")
def _equals(stack: Stack, argument: Any, path: ValuePath) -> Any:
    left, right = (as_text(stack.value(each, (*path, n))) for n, each in enumerate(argument))
    if left == right:
        # Two unknown values with one reason need not be equal.
        return left if isinstance(left, Unknown) else True
    for one, other in ((left, right), (right, left)):
        # The name of a resource is never empty.
        if isinstance(one, Reference) and other == "":
            return False
        if why := why_unknown(one):
            return Unknown(why)
    return False


@_evaluates("Fn::And", "Fn::Or")
def _combined(stack: Stack, argument: Any, path: ValuePath) -> Any:
    """One decisive operand is enough, whatever the unknown ones are."""
    decisive = path[-1] == "Fn::Or"
    operands = stack.value(argument, path)
    found = [as_truth(each) for each in (operands if isinstance(operands, list) else [operands])]
    if any(each is decisive for each in found):
        return decisive
    return next((each for each in found if isinstance(each, Unknown)), not decisive)


@_evaluates("Fn::Not")
def _not(stack: Stack, argument: Any, path: ValuePath) -> Any:
    found = as_truth(stack.value(argument[0], (*path, 0)))
    return found if isinstance(found, Unknown) else not found


@_evaluates("Fn::FindInMap")
def _find_in_map(stack: Stack, argument: Any, path: ValuePath) -> Any:
    found: Any = stack.section("Mappings")
    default = stack.value(get_path(argument, 3, "DefaultValue"), (*path, 3, "DefaultValue"))
    for number, written in enumerate(argument[:3]):
        key = as_text(stack.value(written, (*path, number)))
        if why := why_unknown(key):
            return Unknown(why, (default,))
        if key not in found:
            why = f"the mapping has no key {key}"
            return Unknown(why) if default is None else default
        found = found[key]
    return found


@_evaluates("Fn::Select")
def _select(stack: Stack, argument: Any, path: ValuePath) -> Any:
    index, items = stack.value(argument, path)
    if why := why_unknown(index) or why_unknown(items):
        return Unknown(why, (items,))
    return items[int(index)]


@_evaluates("Fn::Split")
def _split(stack: Stack, argument: Any, path: ValuePath) -> Any:
    separator, text = stack.value(argument, path)
    return Unknown(why, (text,)) if (why := why_unknown(text)) else text.split(separator)


@_evaluates("Fn::ImportValue")
def _import_value(stack: Stack, argument: Any, path: ValuePath) -> Any:
    name = stack.value(argument, path)
    found = stack.imported(identity(name))
    if found is NO_VALUE:
        shown = name if isinstance(name, str) else f"this name: {why_unknown(name)}"
        return Unknown(f"no template read here exports {shown}")
    return found


@_evaluates("Fn::ToJsonString")
def _to_json(stack: Stack, argument: Any, path: ValuePath) -> Any:
    value = stack.value(argument, path)
    try:
        return json.dumps(value)
    except TypeError:
        return Unknown("it holds values that are known only after deployment", (value,))


@_evaluates("Fn::Length")
def _length(stack: Stack, argument: Any, path: ValuePath) -> Any:
    found = stack.value(argument, path)
    return Unknown(why, (found,)) if (why := why_unknown(found)) else len(found)


@_evaluates("Fn::Base64")
def _base64(stack: Stack, argument: Any, path: ValuePath) -> Any:
    # Its text is not needed, and the references inside it still count.
    return Joined((stack.value(argument, path),))
