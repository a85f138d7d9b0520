"""CloudFormation stacks and their resources, with parameters, conditions and functions evaluated.

What only a deployment can tell (an ARN, an address) stays a `Reference`. What a missing parameter
leaves open is `Unknown`, with the parameter's name and line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.intrinsic_functions import FUNCTIONS, NOT_EVALUATED, as_truth
from poolkit.budget.model import ResourceKey, known, unknown
from poolkit.budget.read.values import (
    NO_VALUE,
    Reference,
    Unknown,
    as_text,
    get_path,
    whole_number,
)
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from poolkit.budget.model import Quantity, SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath
    from poolkit.budget.read.parameters import ParameterValue


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
        """Return the resources of some types."""
        return (each for each in self.resources.values() if each.type in types)

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
            raise TemplateError(f"{where.file}: has no output {name}")
        if name in self._open_outputs:
            raise TemplateError(f"{where}: output {name} refers to itself")
        condition = outputs[name].get("Condition")
        if condition is not None and self.condition(condition, where) is False:
            return Unknown(f"output {name} does not exist ({where}: its condition is false)")
        self._open_outputs.add(name)
        try:
            return self.value(outputs[name].get("Value"), ("Outputs", name, "Value"))
        finally:
            self._open_outputs.discard(name)

    def exports(self, name: str) -> Any:
        """Return what this stack exports under a name, NO_VALUE if it does not."""
        for output, found in self.section("Outputs").items():
            export = get_path(found, "Export", "Name")
            if export is not None and self.value(export, ("Outputs", output, "Export")) == name:
                return self.output(output)
        return NO_VALUE

    def condition(self, name: Any, where: SourceLocation) -> bool | Unknown:
        """Return whether a condition holds.

        Raises:
            TemplateError: there is no such condition, or it refers to itself.
        """
        conditions = self.section("Conditions")
        if not isinstance(name, str) or name not in conditions:
            raise TemplateError(f"{where}: there is no condition {name!r}")
        if name not in self._conditions:
            self._conditions[name] = None
            self._conditions[name] = as_truth(self.value(conditions[name], ("Conditions", name)))
        result = self._conditions[name]
        if result is None:
            where = self.where("Conditions", name)
            raise TemplateError(f"{where}: condition {name} refers to itself")
        return result

    # -- values -----------------------------------------------------------------------------

    def value(self, node: Any, path: ValuePath) -> Any:
        """Return the value of a node, with its functions evaluated.

        Raises:
            TemplateError: a function is unknown or used wrongly; the message names the line.
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
            path = (*path, name)
            if name in FUNCTIONS:
                return FUNCTIONS[name](self, argument, path)
            if name in NOT_EVALUATED or name.startswith("Fn::ForEach"):
                return Unknown(f"{name} is not evaluated")
            if name.startswith("Fn::"):
                raise TemplateError(f"{self.where(*path)}: unknown intrinsic function {name}")
            path = path[:-1]
        values = {name: self.value(found, (*path, name)) for name, found in node.items()}
        return {name: found for name, found in values.items() if found is not NO_VALUE}

    def ref(self, name: Any, path: ValuePath) -> Any:
        """Return the result of `Ref`: a parameter's value, or a reference to a resource.

        Raises:
            TemplateError: there is no such parameter or resource.
        """
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
            if name in self.section("Resources"):
                return Reference(self.name, name)
        raise TemplateError(f"{self.where(*path)}: {name!r} is neither a parameter nor a resource")

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
            return Unknown(f"parameter {name} is read from Systems Manager ({where})")
        if (kind == "CommaDelimitedList" or kind.startswith("List<")) and isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return as_text(value)

    # -- where values come from -------------------------------------------------------------

    def origin(self, node: Any, path: ValuePath) -> str:
        """Return where a value comes from: its line, and that of the parameter behind it."""
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
        while isinstance(node, dict) and set(node) == {"Fn::If"} and len(node["Fn::If"]) == 3:
            holds = self.condition(node["Fn::If"][0], self.where(*path))
            if not isinstance(holds, bool):
                break
            branch = 1 if holds else 2
            node, path = node["Fn::If"][branch], (*path, "Fn::If", branch)
        return node, path

    def places(self, items: list[Any], path: ValuePath) -> list[int]:
        """Return the indexes of those items of a list that are not AWS::NoValue."""
        found = (self.chosen(item, (*path, number))[0] for number, item in enumerate(items))
        return [number for number, item in enumerate(found) if item != {"Ref": "AWS::NoValue"}]


@dataclass(frozen=True)
class Resource:
    """One resource; its properties are evaluated on first use."""

    stack: Stack
    logical_id: str
    definition: Mapping[str, Any] = field(repr=False)

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

    @cached_property
    def properties(self) -> dict[str, Any]:
        """The evaluated properties, without those that are AWS::NoValue."""
        path = ("Resources", self.logical_id, "Properties")
        found = self.stack.value(self.definition.get("Properties") or {}, path)
        return found if isinstance(found, dict) else {}

    def get(self, *path: str | int) -> Any:
        """Return an evaluated property, None if it is not set; Unknown if one above it is."""
        return get_path(self.properties, *path)

    def where(self, *path: str | int) -> SourceLocation:
        """Return the location of a property."""
        return self.stack.where(*self._written(path)[1])

    def origin(self, *path: str | int) -> str:
        """Return where a property's value comes from."""
        return self.stack.origin(*self._written(path))

    def _written(self, path: ValuePath) -> tuple[Any, ValuePath]:
        """Follow the path of an evaluated property through the template as it was written."""
        node: Any = self.definition.get("Properties") or {}
        written: ValuePath = ("Resources", self.logical_id, "Properties")
        for step in path:
            node, written = self.stack.chosen(node, written)
            try:
                if isinstance(node, list) and isinstance(step, int):
                    # Evaluated lists do not contain AWS::NoValue, so the indexes differ.
                    step = self.stack.places(node, written)[step]  # noqa: PLW2901
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
