"""The connection budget: what a fleet can open at most, against what its database takes.

    templates, parameters -> workloads -> services, poolers, database -> budget -> verdict

docs/budget.md says how every number comes about. What cannot be determined stays unknown,
and an unknown is never added up as if it were a number.
"""
