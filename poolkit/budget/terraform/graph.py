"""A plan or state as a graph: its resources, their values, and the resources they refer to.

Source: Terraform, "JSON Output Format". A plan does not have the values that are known only after
apply, and lists the references of each expression. It does not have the expressions of locals and
of dynamic blocks, so those stay open. A state has all values, and no expressions.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.read.values import Joined, Reference, Unknown, get_path
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from poolkit.budget.model import SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath

_KEY = r'\[(?:\d+|"(?:[^"\\]|\\.)*")\]'
_STEP = re.compile(rf"([\w-]+)({_KEY})?")


class _Name(NamedTuple):
    """A reference in an expression, such as `module.db["a"].address`.

    `scope` is the module of the expression, empty for the root. `key` is the key of the resource or
    module that has the expression, if it uses `each` or `count`.
    """

    text: str
    scope: str
    key: str = ""


@dataclass
class Node:
    """A resource or data source; `values` has references and unknowns in place of open values."""

    address: str
    type: str
    scope: str
    where: SourceLocation
    written: dict[str, Any] = field(repr=False)
    change: Any = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    refers_to: set[str] = field(default_factory=set)
    """The addresses of other resources."""
    hidden: str = ""
    """Why one of its variables may refer to anything; empty: none may."""

    @property
    def is_data(self) -> bool:
        """True for a data source: something that exists already."""
        return self.written.get("mode") == "data"

    def get(self, path: str) -> Any:
        """Return a value by its attributes, with spaces between them; of blocks, the first."""
        return _first(self.values, path)

    def names(self, expression: Any) -> Iterator[_Name]:
        """Return the references of one of its expressions."""
        return _names(expression, self.config, self.scope, _key(self.address))


class Graph:
    """The resources of a plan or state, by address."""

    def __init__(self, document: Document) -> None:
        self.file, self.stack = document.file, re.sub(r"\W+", "-", document.file)
        self.is_partial = document.at("complete") is False or document.at("errored") is True
        self.nodes: dict[str, Node] = {}
        # Instances of resources and modules, and the calls of modules, by an address without keys.
        self._unkeyed: dict[str, list[str]] = defaultdict(list)
        self._calls: dict[str, dict[str, Any]] = {}
        self._named: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._read(document)
        for node in self.nodes.values():
            self._evaluate(node)
        # A state lists the dependencies of a resource, and the dependencies of those.
        listed = {address: self._dependencies(node) for address, node in self.nodes.items()}
        for address, every in listed.items():
            behind = set[str]().union(*(listed[each] for each in every))
            self.nodes[address].refers_to |= every - behind - {address}

    def _read(self, document: Document) -> None:
        """Make the nodes, without their values."""
        configured: dict[str, tuple[str, dict[str, Any]]] = {}
        todo = [("", {"module": document.at("configuration", "root_module")})]
        while todo:
            scope, call = todo.pop()
            self._calls[scope.rstrip(".")] = call
            for each in map(_dict, _list(get_path(call, "module", "resources"))):
                configured[f"{scope}{each.get('address')}"] = scope.rstrip("."), each
            inner = _dict(get_path(call, "module", "module_calls"))
            todo += [(f"{scope}module.{name}.", _dict(each)) for name, each in inner.items()]
        changes = [*map(_dict, _list(document.at("resource_changes")))]
        change_of = {str(each.get("address")): each.get("change") for each in changes}
        every = [*resources(document)]
        present = {re.sub(_KEY, "", str(found.get("address"))) for _, _, found in every}
        for address, (scope, found) in configured.items():
            # Data sources that are not read yet stand nowhere else.
            if found.get("mode") == "data" and address not in present:
                every.append(((), scope, {**found, "address": address}))
        modules = set[str]()
        for path, scope, found in every:
            address, kind = str(found.get("address")), str(found.get("type"))
            unkeyed = re.sub(_KEY, "", address)
            _, config = configured.get(unkeyed, ("", {}))
            where, change = document.where(*path), change_of.get(address)
            self.nodes[address] = Node(address, kind, scope, where, found, change, config)
            self._unkeyed[unkeyed].append(address)
            while scope and scope not in modules:
                modules.add(scope)
                self._unkeyed[re.sub(_KEY, "", scope)].append(scope)
                scope = _around(scope)  # noqa: PLW2901

    def _dependencies(self, node: Node) -> set[str]:
        every = [self._unkeyed[str(name)] for name in _list(node.written.get("depends_on"))]
        beside = [[each for each in one if self.nodes[each].scope == node.scope] for one in every]
        return {each for one, own in zip(every, beside, strict=True) for each in own or one}

    # -- values -----------------------------------------------------------------------------

    def _evaluate(self, node: Node) -> None:
        """Set a node's values, and what its expressions refer to."""
        expressions = _dict(node.config.get("expressions"))
        sensitive = node.written.get("sensitive_values") or get_path(node.change, "after_sensitive")
        shown = _dict(node.written.get("values"))
        unknown = _dict(get_path(node.change, "after_unknown"))
        for name in {**shown, **unknown}:
            # Without an expression the provider chooses the value, which is its default.
            if unknown.get(name) is True and node.config and name not in expressions:
                continue
            parts = (shown.get(name), unknown.get(name), get_path(sensitive, name))
            value = _filled(*parts, expressions.get(name), partial(self._open, node, name))
            node.values[name] = value
            if isinstance(value, str) and name in ("id", "arn", *table("terraform")["names"]):
                # An ARN ends in the id that other services use: service/main/web.
                for text in {value, value.rpartition(":")[2]}:
                    self._named[node.type, text].append(node.address)
        every = [expressions, {"references": node.config.get("depends_on") or []}]
        node.refers_to |= self._resolved(node.names(every))[0] - {node.address}

    def _open(self, node: Node, name: str, expression: Any) -> Any:
        """Return what an expression refers to, in place of a value that is not in the file."""
        names = list(node.names(expression))
        if expression is None and node.config:
            names = [_Name("dynamic.block", node.scope)]
        is_variable = name in table("terraform")["variables"]
        found, hidden = self._resolved(names, is_open=True, through_locals=is_variable)
        reason = "it is known only after apply, or sensitive"
        if hidden:
            reason += f"; the plan does not show {next(iter(hidden.values()))}"
        if is_variable:
            node.refers_to |= found - {node.address}
            # A state lists what a local refers to as a dependency.
            is_hidden = "" in hidden or (node.change is not None and not node.config)
            node.hidden = reason if is_hidden else node.hidden
        refers_to = [Reference(self.stack, each, "id") for each in sorted(found)]
        if len(refers_to) == 1 and not hidden:
            return refers_to[0]
        return Joined((*refers_to, Unknown(reason)))

    def _resolved(
        self, names: Iterable[_Name], *, is_open: bool = False, through_locals: bool = False
    ) -> tuple[set[str], dict[str, str]]:
        """Return the addresses that names refer to, and the hidden expressions by their module.

        Args:
            names: the references.
            is_open: leave out attributes whose values the plan has, and credentials beside an address.
            through_locals: a local of a module stands for all that the module has and receives.

        """
        found, credentials, hidden = set[str](), set[str](), dict[str, str]()
        todo, seen = list(names), set[_Name]()
        while todo:
            name = todo.pop()
            steps, scope = _STEP.findall(name.text), name.scope
            if name in seen or len(steps) < 2:
                continue
            seen.add(name)
            received = get_path(self._calls.get(re.sub(_KEY, "", scope)), "expressions")
            kind = steps[0][0]
            if kind in ("local", "dynamic"):
                hidden[scope] = name.text.replace("dynamic.", "a dynamic ")
                if scope and through_locals:
                    found |= {*self._inside(scope, table("terraform")["servers"])}
                    todo += self._outside(scope, received)
            elif kind == "var":
                todo += self._outside(scope, get_path(received, steps[1][0]))
            elif kind == "module":
                todo += self._outputs(name, steps)
            else:
                size = 3 if kind == "data" else 2
                base = ".".join(step for step, _ in steps[:size])
                attribute = steps[size][0] if len(steps) > size else ""
                for each in self._instances(name, base, steps[:size][-1][1]):
                    value = get_path(self.nodes[each].written, "values", attribute)
                    unknown = get_path(self.nodes[each].change, "after_unknown", attribute)
                    if not is_open or value is None or unknown:
                        is_address = attribute not in table("terraform")["no_address"]
                        (found if is_address or not is_open else credentials).add(each)
        return found or credentials, hidden

    def _outputs(self, name: _Name, steps: list[tuple[str, str]]) -> Iterator[_Name]:
        """Return the references of a module's output; without an output, those of all."""
        called = f"module.{steps[1][0]}"
        # A module without resources has no instances in the file.
        alone = f"{name.scope}.{called}".removeprefix(".")
        for child in self._instances(name, called, steps[1][1]) or [alone]:
            call = self._calls.get(re.sub(_KEY, "", child))
            outputs = _dict(get_path(call, "module", "outputs"))
            for output in [steps[2][0]] if len(steps) > 2 else outputs:
                yield from _names(outputs.get(output), None, child, "")

    def _instances(self, name: _Name, base: str, key: str) -> list[str]:
        """Return the addresses of a resource or module: in the module of the reference, by its key."""
        prefix = f"{name.scope}." if name.scope else ""
        every = self._unkeyed.get(re.sub(_KEY, "", prefix) + base, [])
        own = [each for each in every if each.startswith(prefix)] or every
        key = key or name.key
        return [each for each in own if key and each.endswith(key)] or own

    def _outside(self, scope: str, expression: Any) -> Iterator[_Name]:
        """Return the references of an expression in the call of a module."""
        call = self._calls.get(re.sub(_KEY, "", scope))
        return _names(expression, call, _around(scope), _key(scope))

    # -- finding ----------------------------------------------------------------------------

    def _inside(self, scope: str, types: Collection[str]) -> list[str]:
        """Return the resources of some types in a module and in the modules inside it."""
        prefix = f"{scope}." if scope else ""
        every = ((name, each) for name, each in self.nodes.items() if name.startswith(prefix))
        return [name for name, each in every if each.type in types and not each.is_data]

    def linked(self, node: Node, attribute: str, types: Collection[str]) -> Any:
        """Return a reference to the resource that an attribute names, else the attribute's value."""
        value = node.get(attribute)
        expression = _first(node.config.get("expressions"), attribute)
        addresses, hidden = self._resolved(node.names(expression))
        nodes = [self.nodes[each] for each in addresses]
        found = {each.address for each in nodes if each.type in types and not each.is_data}
        if isinstance(value, str):
            # The number after the last colon is a version.
            for text in (value, value.rpartition(":")[0]):
                found = found or {each for kind in types for each in self._named[kind, text]}
        elif value is not None and not found:
            # What a local names is the only resource of its type around it in most cases.
            found = {each for scope in hidden for each in self._inside(scope, types)}
        found -= {node.address}
        if len(found) != 1:
            return value
        node.refers_to |= found
        return Reference(self.stack, found.pop(), "id")


def resources(document: Document) -> Iterator[tuple[ValuePath, str, dict[str, Any]]]:
    """Return each resource of a plan or state with its path and its module."""
    roots = (("planned_values",), ("values",), ("prior_state", "values"))
    todo: list[ValuePath] = [(*root, "root_module") for root in roots]
    while todo:
        path = todo.pop()
        module = document.at(*path)
        for number, each in enumerate(_list(get_path(module, "resources"))):
            # The other resources of the prior state are those that the plan changes.
            if isinstance(each, dict) and (path[0] != "prior_state" or each.get("mode") == "data"):
                yield (*path, "resources", number), str(module.get("address") or ""), each
        inner = _list(get_path(module, "child_modules"))
        todo += [(*path, "child_modules", number) for number in range(len(inner))]


def _dict(found: Any) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _first(found: Any, path: str) -> Any:
    for step in path.split():
        found = get_path(found[0] if isinstance(found, list) and found else found, step)
    return found


def _key(address: str) -> str:
    """Return the key of count or for_each at the end of an address, such as `[0]`."""
    found = re.search(rf"{_KEY}$", address)
    return found[0] if found else ""


def _around(scope: str) -> str:
    """Return the module that calls a module; empty for the root."""
    return re.sub(rf"(^|\.)module\.[\w-]+({_KEY})?$", "", scope)


def _names(expression: Any, owner: Any, scope: str, key: str) -> Iterator[_Name]:
    """Return the references of an expression, and of all expressions inside it."""
    todo = [expression]
    while todo:
        each = todo.pop()
        texts = [text for text in _list(get_path(each, "references")) if isinstance(text, str)]
        if texts:
            keyed = {text for text in texts if text.startswith(("each.", "count."))}
            todo += [get_path(owner, "for_each_expression")] if keyed else []
            for text in {*texts} - keyed:
                # a.b[0].c is also listed as a.b[0] and a.b.
                if not any(other.startswith((f"{text}.", f"{text}[")) for other in texts):
                    yield _Name(text, scope, key if keyed else "")
        elif isinstance(each, dict | list):
            todo += each.values() if isinstance(each, dict) else each


def _filled(
    value: Any, unknown: Any, sensitive: Any, expression: Any, opened: Callable[[Any], Any]
) -> Any:
    """Return a value; its parts that are unknown or sensitive come from `opened`."""
    if unknown is True or (sensitive is True and not isinstance(value, dict | None)):
        return opened(expression)
    steps: Iterable[Any]
    if isinstance(value, dict) or isinstance(unknown, dict):
        steps = {**_dict(value), **_dict(unknown)}
    elif isinstance(value, list) or isinstance(unknown, list):
        steps = range(max(len(_list(value)), len(_list(unknown))))
    else:
        return value
    # One expression can stand for a whole map, and one block for a list of one block.
    is_map = isinstance(expression, dict)
    is_whole = is_map and not (expression.keys() - {"references", "constant_value"})
    found = {}
    for step in steps:
        inner = (get_path(value, step), get_path(unknown, step))
        is_secret = sensitive is True or get_path(sensitive, step)
        below = expression if is_whole or (is_map and step == 0) else get_path(expression, step)
        found[step] = _filled(*inner, is_secret, below, opened)
    return found if isinstance(steps, dict) else [*found.values()]
