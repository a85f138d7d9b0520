"""Terraform's and OpenTofu's plans and states, as `terraform show -json` writes them.

    graph      documents -> resources, their values, and what they refer to
    workloads  resources -> CloudFormation templates, Kubernetes manifests, databases

In come documents. Out go the workloads, databases and poolers of the model.
"""
