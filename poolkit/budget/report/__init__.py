"""Output.

In comes a budget. Out go rows and sentences: on a terminal, as JSON, Markdown, GitHub annotations
and SARIF.
"""
