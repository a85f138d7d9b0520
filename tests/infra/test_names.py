"""A name of one's own forbids every replacement: CloudFormation would make the new one beside the old.

CloudFormation User Guide, "Name type": you cannot perform an update that requires the resource to be
replaced, unless the name changes too.
"""

import functools
import json
from importlib.resources import files

import pytest
from infra.deployed import INFRA
from infra.transformed import declared, references, transformed

SCHEMAS = files("cfnlint") / "data" / "schemas"


@functools.cache
def schema(kind):
    """Return the resource type's schema from CloudFormation's registry, as cfn-lint ships it."""
    types = json.loads((SCHEMAS / "providers" / "eu-central-1.json").read_text())
    return json.loads((SCHEMAS / "resources" / f"{types[kind]}.json").read_text())


def properties(kind, key):
    """Return the names of the properties in a list of JSON pointers, or of lists of them."""
    pointers = []
    for each in schema(kind).get(key, []):
        pointers += each if isinstance(each, list) else [each]
    return {each.split("/")[2] for each in pointers}


def parameters_in(value, template):
    """Return the parameters that a value as written depends on, those of its conditions included."""
    document = declared(template)
    text, seen = json.dumps(value), set()
    waiting = [text]
    while waiting:
        text = waiting.pop()
        for name in document["Parameters"]:
            if f'"Ref": "{name}"' in text or f"${{{name}}}" in text:
                seen.add(name)
        for name, condition in document.get("Conditions", {}).items():
            if f'"Fn::If": ["{name}"' in text or f'"Condition": "{name}"' in text:
                waiting.append(json.dumps(condition))
    return seen


TEMPLATES = sorted(
    file.name for file in INFRA.glob("*.yaml") if "AWSTemplateFormatVersion" in file.read_text()
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_has_a_name_is_never_replaced_under_it(template):
    """No parameter changes what replaces a named resource, unless it changes the name with it."""
    written = declared(template)["Resources"]
    for name, each in transformed(template).resources.items():
        if not each["Type"].startswith("AWS::") or name not in written:
            continue
        kind, own = each["Type"], each["Properties"]
        final = properties(kind, "createOnlyProperties")
        identity = properties(kind, "primaryIdentifier") | properties(kind, "additionalIdentifiers")
        names = {key for key in final & identity & own.keys() if not in_stack(own[key], written)}
        if not names:
            continue
        source = written[name]["Properties"]
        changing = {
            parameter
            for key in (final - names) & own.keys()
            for parameter in parameters_in(source.get(key, ""), template)
        }
        in_names = {
            parameter for key in names for parameter in parameters_in(source.get(key, ""), template)
        }
        assert not changing or in_names, f"{name}: {sorted(changing)} would replace it"


def in_stack(value, resources):
    """Return whether a value is another resource's, whose replacement changes it."""
    return bool(references(value) & resources.keys())


@pytest.mark.parametrize("template", ["lambda.yaml", "managedfunction.yaml"])
def test_a_function_has_nothing_that_replaces_it_but_its_name(template):
    """Of what it may have, that is the kind of its package, and the isolation of tenants."""
    final = properties("AWS::Lambda::Function", "createOnlyProperties")
    assert final == {"FunctionName", "PackageType", "TenancyConfig"}
    for each in transformed(template).of_type("AWS::Lambda::Function").values():
        assert not {"PackageType", "TenancyConfig"} & each["Properties"].keys()
