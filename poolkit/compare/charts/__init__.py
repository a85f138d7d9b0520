"""The charts of a run, as SVG for the report's page and as PNG files.

In: results, and for charts over time and by percentile the raw rows of the run folder. Out: a `Picture`
each, from `overview`, `levels`, `pool_sizes`, `over_time` and `percentiles`. Altair describes it, vl-convert draws it.
"""
