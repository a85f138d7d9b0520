"""Step 2 of `poolkit compare`: start servers and targets, send the load, write raw rows.

In: a `CheckedPlan` of step 1. Out: a run folder with the rows of every measurement
(docs/results.md), and an `Outcome` that says why the run ended. Only the figures for the next
moment are computed here, and nothing stays running.

`run` goes through the measurements in their order. `measure` makes one of them: the target on
its `hosts`, the load of `load`, what the `samplers` write meanwhile. `progress` shows it.
"""
