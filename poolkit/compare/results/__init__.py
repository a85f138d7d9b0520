"""Step 3 of `poolkit compare`: from the raw rows of a run folder to `results.json`."""
