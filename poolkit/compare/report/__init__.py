"""Step 4 of `poolkit compare`: from a run folder's results to the page and the terminal's tables."""
