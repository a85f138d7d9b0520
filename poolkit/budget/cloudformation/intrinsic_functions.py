"""The intrinsic functions of CloudFormation, as far as they can be evaluated without AWS.

Source: AWS CloudFormation Template Reference, "Intrinsic function reference". Each function takes
the stack, the argument as it was written, and the path of the call for messages.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeAlias

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
    from collections.abc import Callable

    from poolkit.budget.cloudformation.stacks import Stack
    from poolkit.budget.read.documents import ValuePath

    Function: TypeAlias = Callable[[Stack, Any, ValuePath], Any]

_VARIABLE = re.compile(r"\$\{(!?)([^}]*)\}")
NOT_EVALUATED = frozenset(
    {"Fn::Cidr", "Fn::GetAZs", "Fn::Transform", "Fn::GetStackOutput", "Fn::ForEach"}
    | {"Fn::Contains", "Fn::EachMemberEquals", "Fn::EachMemberIn", "Fn::RefAll", "Fn::ValueOf"}
    | {"Fn::ValueOfAll"}
)
"""Functions whose result is never a number."""
FUNCTIONS: dict[str, Function] = {}
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
    return Unknown(why_unknown(value) or "it is no condition")


def _arguments(stack: Stack, argument: Any, count: int, path: ValuePath) -> list[Any]:
    if not isinstance(argument, list) or len(argument) != count:
        raise TemplateError(f"{stack.where(*path)}: {path[-1]} must have a list of {count}")
    return argument


@_evaluates("Ref")
def _ref(stack: Stack, argument: Any, path: ValuePath) -> Any:
    return stack.ref(argument, path)


@_evaluates("Fn::GetAtt")
def _get_att(stack: Stack, argument: Any, path: ValuePath) -> Any:
    if isinstance(argument, str):
        argument = argument.split(".", 1)
    if not isinstance(argument, list) or len(argument) < 2:
        raise TemplateError(f"{stack.where(*path)}: Fn::GetAtt must name a resource and attribute")
    name, attribute = argument[0], ".".join(str(part) for part in argument[1:])
    resource = stack.section("Resources").get(name)
    if not isinstance(resource, dict):
        raise TemplateError(f"{stack.where(*path)}: there is no resource {name!r}")
    if resource.get("Type") == "AWS::CloudFormation::Stack" and attribute.startswith("Outputs."):
        return stack.output_of(stack.name, name, attribute.removeprefix("Outputs."))
    return Reference(stack.name, name, attribute)


@_evaluates("Fn::Sub")
def _sub(stack: Stack, argument: Any, path: ValuePath) -> Any:
    text, variables = argument, {}
    if isinstance(argument, list) and len(argument) == 2:
        text, variables = argument[0], stack.value(argument[1], (*path, 1))
    if not isinstance(text, str) or not isinstance(variables, dict):
        raise TemplateError(f"{stack.where(*path)}: Fn::Sub must have a text")
    parts: list[Any] = []
    end = 0
    for match in _VARIABLE.finditer(text):
        parts.append(text[end : match.start()])
        end = match.end()
        literal, name = match[1], match[2].strip()
        if literal:
            parts.append("${" + match[2] + "}")
        elif name in variables:
            parts.append(variables[name])
        else:
            parts.append(_get_att(stack, name, path) if "." in name else stack.ref(name, path))
    return joined([*parts, text[end:]])


@_evaluates("Fn::Join")
def _join(stack: Stack, argument: Any, path: ValuePath) -> Any:
    separator, parts = _arguments(stack, argument, 2, path)
    parts = stack.value(parts, (*path, 1))
    if isinstance(parts, Unknown):
        return parts
    return joined(parts if isinstance(parts, list) else [parts], str(separator))


@_evaluates("Fn::If")
def _if(stack: Stack, argument: Any, path: ValuePath) -> Any:
    name, *_ = _arguments(stack, argument, 3, path)
    holds = stack.condition(name, stack.where(*path))
    if isinstance(holds, bool):
        chosen = 1 if holds else 2
        return stack.value(argument[chosen], (*path, chosen))
    both = [stack.value(argument[n], (*path, n)) for n in (1, 2)]
    return both[0] if both[0] == both[1] else Unknown(f"condition {name}: {holds.reason}")


@_evaluates("Fn::Equals")
def _equals(stack: Stack, argument: Any, path: ValuePath) -> Any:
    _arguments(stack, argument, 2, path)
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
    """One decisive operand settles it, whatever the unknown ones are."""
    decisive = path[-1] == "Fn::Or"
    operands = stack.value(argument, path)
    found = [as_truth(each) for each in (operands if isinstance(operands, list) else [operands])]
    if any(each is decisive for each in found):
        return decisive
    return next((each for each in found if isinstance(each, Unknown)), not decisive)


@_evaluates("Fn::Not")
def _not(stack: Stack, argument: Any, path: ValuePath) -> Any:
    (operand,) = _arguments(stack, argument, 1, path)
    found = as_truth(stack.value(operand, (*path, 0)))
    return found if isinstance(found, Unknown) else not found


@_evaluates("Fn::FindInMap")
def _find_in_map(stack: Stack, argument: Any, path: ValuePath) -> Any:
    if not isinstance(argument, list) or len(argument) not in (3, 4):
        raise TemplateError(f"{stack.where(*path)}: Fn::FindInMap must name a map and two keys")
    found: Any = stack.section("Mappings")
    for number, written in enumerate(argument[:3]):
        key = as_text(stack.value(written, (*path, number)))
        if why := why_unknown(key):
            return Unknown(why)
        if isinstance(found, dict) and isinstance(key, str) and key in found:
            found = found[key]
        elif len(argument) == 4 and isinstance(argument[3], dict) and "DefaultValue" in argument[3]:
            return stack.value(argument[3]["DefaultValue"], (*path, 3))
        else:
            raise TemplateError(f"{stack.where(*path)}: the mapping has no key {key!r}")
    return found


@_evaluates("Fn::Select")
def _select(stack: Stack, argument: Any, path: ValuePath) -> Any:
    _arguments(stack, argument, 2, path)
    index, items = (stack.value(each, (*path, n)) for n, each in enumerate(argument))
    if why := why_unknown(index) or why_unknown(items):
        return Unknown(why)
    try:
        return items[int(index)]
    except (ValueError, IndexError, TypeError, KeyError):
        raise TemplateError(f"{stack.where(*path)}: Fn::Select finds no item {index!r}") from None


@_evaluates("Fn::Split")
def _split(stack: Stack, argument: Any, path: ValuePath) -> Any:
    separator, text = _arguments(stack, argument, 2, path)
    text = stack.value(text, (*path, 1))
    if isinstance(text, str):
        return text.split(str(separator))
    return Unknown(why_unknown(text) or "the argument of Fn::Split is no text")


@_evaluates("Fn::ImportValue")
def _import_value(stack: Stack, argument: Any, path: ValuePath) -> Any:
    name = stack.value(argument, path)
    if not isinstance(name, str):
        return Unknown(why_unknown(name) or "Fn::ImportValue has no name")
    found = stack.imported(name)
    if found is NO_VALUE:
        return Unknown(f"no template read here exports {name!r} ({stack.where(*path)})")
    return found


@_evaluates("Fn::ToJsonString")
def _to_json(stack: Stack, argument: Any, path: ValuePath) -> Any:
    try:
        return json.dumps(stack.value(argument, path))
    except TypeError:
        return Unknown("it holds values that are known only after deployment")


@_evaluates("Fn::Length")
def _length(stack: Stack, argument: Any, path: ValuePath) -> Any:
    found = stack.value(argument, path)
    if isinstance(found, list):
        return len(found)
    return Unknown(why_unknown(found) or "the argument of Fn::Length is no list")


@_evaluates("Fn::Base64")
def _base64(stack: Stack, argument: Any, path: ValuePath) -> Any:
    # Its text is not needed, and the references inside it still count.
    return Joined((stack.value(argument, path),))
