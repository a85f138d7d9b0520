"""Step 4 of `poolkit compare`: from results to text for people.

In: a run folder, and the results computed from it. Out: `report.html` and `charts/*.png` in the run
folder (`write`), tables and findings on the terminal (`terminal`), and two runs side by side
(`side_by_side`). The sentences are made in `findings`, the page from `templates/` in `page`.
"""
