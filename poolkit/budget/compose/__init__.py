"""Compose files.

In come documents. Out go workloads of the model, one per service.
"""
