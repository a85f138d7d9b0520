"""Plans and states in the form of `terraform show -json`, for the budget's tests."""

import json

AFTER_APPLY = object()
"""A value that a plan does not have."""


class Ref(dict):
    """An expression with references, and a value that is known only after apply."""

    def __init__(self, *names, value=AFTER_APPLY):
        every = []
        for name in names:
            every += [name, name.rpartition(".")[0]] if name.count(".") > 1 else [name]
        super().__init__(references=every)
        self.value = value


def resource(address, values, index=None, sensitive=None, **more):
    """Return a resource; a `Ref` or a value of `values` is also its expression."""
    mode = "data" if address.startswith("data.") else "managed"
    kind, name = address.removeprefix("data.").split(".")
    return {
        "address": address if index is None else f"{address}[{json.dumps(index)}]",
        "mode": mode,
        "type": kind,
        "name": name,
        **({} if index is None else {"index": index}),
        "values": values,
        "sensitive_values": sensitive or {},
        **more,
    }


def known(value):
    """Return the part of a value that a plan has."""
    if isinstance(value, Ref):
        return value.value
    if isinstance(value, dict):
        found = {key: known(each) for key, each in value.items()}
        return {key: each for key, each in found.items() if each is not AFTER_APPLY}
    if isinstance(value, list):
        return [None if (found := known(each)) is AFTER_APPLY else found for each in value]
    return value


def after_unknown(value):
    if isinstance(value, Ref):
        return value.value is AFTER_APPLY
    if isinstance(value, dict):
        return {key: found for key, each in value.items() if (found := after_unknown(each))}
    if isinstance(value, list):
        return [after_unknown(each) for each in value]
    return False


def expression(value):
    """Return the expression of a value. One of a map stands for the whole map, as in Terraform."""
    if isinstance(value, Ref):
        return dict(value)
    if isinstance(value, list) and value and type(value[0]) is dict:
        return [{key: expression(each) for key, each in block.items()} for block in value]
    if isinstance(value, dict | list):
        names = list(references(value))
        return {"references": names} if names else {}
    return {"constant_value": value}


def references(value):
    if isinstance(value, Ref):
        yield from value["references"]
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from references(each)


class Module:
    """A module: resources, calls of modules with their arguments, and outputs."""

    def __init__(self, *resources, outputs=None, **calls):
        self.resources, self.outputs, self.calls = resources, outputs or {}, calls

    def call(self, key=None, dynamic=(), for_each=None, **arguments):
        """Return this module as it is called; `dynamic` are attributes without an expression."""
        return self, key, arguments, dynamic, for_each

    def configuration(self, dynamic=()):
        unique = {each["address"].partition("[")[0]: each for each in self.resources}
        return {
            "resources": [
                {
                    "address": address,
                    "mode": each["mode"],
                    "type": each["type"],
                    "name": each["name"],
                    "expressions": {
                        name: expression(value)
                        for name, value in each["values"].items()
                        if name not in dynamic and known(value) is not None
                    },
                    **({"depends_on": each["depends_on"]} if "depends_on" in each else {}),
                }
                for address, each in unique.items()
            ],
            "outputs": {name: {"expression": dict(ref)} for name, ref in self.outputs.items()},
            "module_calls": {
                name: {
                    "expressions": {key: expression(value) for key, value in arguments.items()},
                    "module": module.configuration(dynamic),
                    **({"for_each_expression": dict(for_each)} if for_each else {}),
                }
                for name, (module, _, arguments, dynamic, for_each) in self.calls.items()
            },
        }

    def instances(self, address=""):
        inside = f"{address}." if address else ""
        for each in self.resources:
            yield {**each, "address": inside + each["address"], "module": address}
        for name, (module, key, *_) in self.calls.items():
            for one in key if isinstance(key, list) else [key]:
                own = f"{inside}module.{name}" + ("" if one is None else f"[{json.dumps(one)}]")
                yield from module.instances(own)

    def values(self, address="", *, is_state=False):
        inside = f"{address}." if address else ""
        keys = ("mode", "type", "name", "index", "sensitive_values")
        keys += ("depends_on",) if is_state else ()
        calls = [
            (f"{inside}module.{name}" + ("" if one is None else f"[{json.dumps(one)}]"), module)
            for name, (module, key, *_) in self.calls.items()
            for one in (key if isinstance(key, list) else [key])
        ]
        return {
            **({"address": address} if address else {}),
            "resources": [
                {
                    "address": inside + each["address"],
                    **{key: each[key] for key in keys if key in each},
                    "values": known(each["values"]),
                }
                for each in self.resources
            ],
            "child_modules": [module.values(own, is_state=is_state) for own, module in calls],
        }

    def plan(self):
        """Return a plan that makes everything of this root module."""
        return json.dumps(
            {
                "format_version": "1.2",
                "terraform_version": "1.11.4",
                "planned_values": {"root_module": self.values()},
                "resource_changes": [
                    {
                        "address": each["address"],
                        "change": {
                            "actions": ["create"],
                            "after": known(each["values"]),
                            "after_unknown": after_unknown(each["values"]),
                        },
                    }
                    for each in self.instances()
                ],
                "configuration": {"root_module": self.configuration()},
            },
            indent=1,
        )

    def state(self):
        """Return the state of this root module; it has no expressions."""
        values = {"root_module": self.values(is_state=True)}
        return json.dumps(
            {"format_version": "1.0", "terraform_version": "1.11.4", "values": values}
        )
