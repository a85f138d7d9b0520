"""`poolkit compare`: the same load on each target, and its effect on the database.

One direction: `plan` checks the input, `run` writes a run folder, `results` computes figures from
it, `report` and `charts` show them. Each step reads what the step before it wrote, so a report can
be made again from a run folder. `command` is the whole way, from options to exit status.
"""
