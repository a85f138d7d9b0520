"""Step 1 of `poolkit compare`: from options and `[tool.poolkit]` to a checked plan of what to run."""
