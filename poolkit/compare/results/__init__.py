"""Step 3 of `poolkit compare`: from the raw rows of a run folder to figures.

In: a run folder (`run_folder` describes and reads its files). Out: `Results`, which
`results.json` holds: the figures of every measurement (`target_result`), the loads that each target
sustains (`levels`), and the thresholds' verdicts (`results`). `wording` has how figures read.
"""
