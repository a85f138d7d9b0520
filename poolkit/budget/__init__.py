"""The connection budget: the most connections of a deployment against its database's limit.

    read/                                  files -> documents, parameters, values
    cloudformation/, kubernetes/, compose/ documents -> workloads, databases, poolers
    terraform/                             plans, states -> templates and manifests -> the same
    processes                              command lines -> number of processes
    signs, software                        variables and images -> clients, servers, poolers
    inventory, pools                       workloads -> services, poolers, databases
    limits                                 engines, classes, formulas -> the limits of a database
    verdict, suggestions                   their ceilings -> budget -> verdict and ways out
    answers                                options and entries for what the files do not show
    measured                               a server's or a run's connections against the ceilings
    report/                                budgets -> terminal, JSON, Markdown, annotations, SARIF

In come paths and options (`command.Options`); out go `verdict.Budgets`. docs/budget.md explains
every number. A number that cannot be determined stays unknown, and is never added up as a number.
"""
