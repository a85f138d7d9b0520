"""CloudFormation and SAM templates.

In come documents and parameter values. Out go workloads, RDS databases and RDS proxies of the
model, and what could not be read.
"""
