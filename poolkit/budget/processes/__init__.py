"""Command lines.

In comes a workload of the model. Out goes the number of processes that its command line starts.
"""
