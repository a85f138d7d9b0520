"""Step 1 of `poolkit compare`: from options and `[tool.poolkit]` to a checked plan.

In: the values of the command line (`options`, parsed by the click types of `option_types`) and
the project's pyproject.toml. Out: a `CheckedPlan` (`plan`), which has the plan as plan.json
records it, the targets, and every limit that is known before the run.

`targets` reads the tables of pyproject.toml and `--target`. `checks` finds the mistakes that
would end a run later: hosts that do not answer, locustfiles and migrations that do not import.
"""
