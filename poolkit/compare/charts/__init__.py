"""The charts of a run folder, as SVG for the page and as PNG files."""
