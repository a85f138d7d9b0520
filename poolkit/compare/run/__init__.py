"""Step 2 of `poolkit compare`: start servers and targets, send the load, and write raw rows to a run folder."""
