"""AWS SAM templates as the CloudFormation that they stand for, as far as connections depend on it.

SAM's own translator refuses templates that `sam build` completes (an image without ImageUri, a
function without CodeUri), and it asks AWS for published applications. So the few rules that decide
a number are here: the types, and Globals. Source: AWS SAM Developer Guide, "Globals section of the
AWS SAM template" (maps are merged, lists joined, other values replaced; IgnoreGlobals).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from poolkit.budget.read.values import get_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.model import SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath

_PREFIX = "AWS::Serverless::"
_EQUIVALENTS = {
    "Application": "AWS::CloudFormation::Stack",
    "CapacityProvider": "AWS::Lambda::CapacityProvider",
    "Function": "AWS::Lambda::Function",
    "MicrovmImage": "AWS::Lambda::MicrovmImage",
    "NetworkConnector": "AWS::Lambda::NetworkConnector",
    "StateMachine": "AWS::StepFunctions::StateMachine",
    "WebFunction": "AWS::Serverless::WebFunction",
}
"""SAM's types whose properties are read, and the types that SAM makes of them."""


def expand(document: Document) -> Document:
    """Return a template with CloudFormation's types and with SAM's Globals in each resource."""
    resources = document.at("Resources")
    if not isinstance(resources, dict):
        return document
    made: dict[str, Any] = {}
    moved: dict[ValuePath, SourceLocation] = {}
    for name, found in resources.items():
        made[name] = found
        kind = str(get_path(found, "Type"))
        section = kind.removeprefix(_PREFIX)
        if not kind.startswith(_PREFIX) or section not in _EQUIVALENTS:
            continue
        own, shared = found.get("Properties"), document.at("Globals", section)
        properties = dict(own) if isinstance(own, dict) else {}
        ignored = found.get("IgnoreGlobals") or []
        if isinstance(shared, dict) and ignored != "*":
            shared = {key: value for key, value in shared.items() if key not in ignored}
            for path in _from_globals(properties, shared, ()):
                way = ("Resources", name, "Properties", *path)
                moved[way] = document.where("Globals", section, *path)
            properties = _merged(properties, shared)
        if section == "Application":
            properties["TemplateURL"] = properties.get("Location")
        made[name] = {**found, "Type": _EQUIVALENTS[section], "Properties": properties}
    data = {**document.data, "Resources": made}
    return dataclasses.replace(document, data=data, elsewhere={**document.elsewhere, **moved})


def _is_map(value: Any) -> bool:
    return isinstance(value, dict) and not any(key[:4] in ("Ref", "Fn::") for key in value)


def _merged(own: Any, shared: Any) -> Any:
    if _is_map(own) and _is_map(shared):
        merged = {key: _merged(value, shared.get(key)) for key, value in own.items()}
        return {**shared, **merged}
    if isinstance(own, list) and isinstance(shared, list):
        return shared + own
    return shared if own is None else own


def _from_globals(own: Any, shared: Any, path: ValuePath) -> Iterator[ValuePath]:
    """Yield the paths of the values that only Globals has."""
    if own is None:
        yield path
    elif _is_map(own) and _is_map(shared):
        for key, value in shared.items():
            yield from _from_globals(own.get(key), value, (*path, key))
