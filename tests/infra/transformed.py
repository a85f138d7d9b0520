"""A template as CloudFormation executes it: after the SAM transform, with its parameters filled in."""

import copy
import functools
import os
from unittest import mock

import yaml
from infra.deployed import INFRA
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import intrinsics_multi_constructor

NOTHING = object()
"""A value or a resource that is not there: AWS::NoValue, or a condition that is false."""

MANAGED_POLICIES = {
    "AWSCodeDeployRoleForLambda": "arn:aws:iam::aws:policy/AWSCodeDeployRoleForLambda"
}


class _Policies:
    def load(self):
        return MANAGED_POLICIES


class _Loader(yaml.CSafeLoader):
    """YAML with the short forms of CloudFormation's functions; libyaml reads it ten times as fast."""


_Loader.add_multi_constructor("!", intrinsics_multi_constructor)


@functools.cache
def _parsed(template):
    return yaml.load((INFRA / template).read_text(), _Loader)


def declared(template):
    """Return a template as it is written; each caller gets a copy of its own."""
    return copy.deepcopy(_parsed(template))


class Transformed:
    """A template's resources; what only AWS knows stays a `Ref` or `Fn::GetAtt`."""

    def __init__(self, template, given):
        with mock.patch.dict(os.environ, {"AWS_DEFAULT_REGION": "eu-central-1"}):
            document = declared(template)
            if "Transform" in document:
                document = transform(document, dict(given), _Policies())
        self.conditions = document.get("Conditions", {})
        self.parameters = {
            name: str(given.get(name, each.get("Default", f"<{name}>")))
            for name, each in document["Parameters"].items()
        }
        resources = {
            name: self.filled(each)
            for name, each in document["Resources"].items()
            if "Condition" not in each or self.holds(each["Condition"])
        }
        self.resources = {
            name: each | {"Properties": each.get("Properties", {})}
            for name, each in resources.items()
        }

    def of_type(self, kind):
        return {name: each for name, each in self.resources.items() if each["Type"] == kind}

    def properties(self, name):
        return self.resources[name]["Properties"]

    def holds(self, name):
        return self.filled(self.conditions[name])

    def filled(self, value):
        """Replace parameters and conditions; nothing is left of AWS::NoValue."""
        if isinstance(value, list):
            return [found for each in value if (found := self.filled(each)) is not NOTHING]
        if not isinstance(value, dict):
            return value
        key, content = next(iter(value.items())) if len(value) == 1 else (None, None)
        if key == "Ref":
            filled = NOTHING if content == "AWS::NoValue" else self.parameters.get(content, value)
        elif key == "Condition" and isinstance(content, str):
            filled = self.holds(content)
        elif key == "Fn::If":
            filled = self.filled(content[1 if self.holds(content[0]) else 2])
        elif key in _FUNCTIONS:
            filled = _FUNCTIONS[key](self.filled(content))
        else:
            pairs = [
                (name, each if name == "Condition" else self.filled(each))
                for name, each in value.items()
            ]
            filled = {name: each for name, each in pairs if each is not NOTHING}
        return filled


_FUNCTIONS = {
    "Fn::Equals": lambda both: str(both[0]) == str(both[1]),
    "Fn::Not": lambda one: not one[0],
    "Fn::And": all,
    "Fn::Or": any,
}


@functools.cache
def transformed(template, **given):
    """Return a template with these parameters, and the defaults of the others."""
    return Transformed(template, given)


def references(value):
    """Return the logical IDs that a value refers to."""
    if isinstance(value, list):
        return {name for each in value for name in references(each)}
    if not isinstance(value, dict):
        return set()
    if "Ref" in value:
        return {value["Ref"]}
    if "Fn::GetAtt" in value:
        found = value["Fn::GetAtt"]
        return {found.split(".")[0] if isinstance(found, str) else found[0]}
    return references(list(value.values()))
