"""Kubernetes manifests and Kustomize.

In come documents. Out go workloads of the model, one per container, and what could not be read.
"""
