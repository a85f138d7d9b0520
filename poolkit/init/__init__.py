"""`poolkit init`: what a stranger's project consists of, read without running it.

    sources.py       the project's Python files, parsed, with their import names
    applications.py  web applications, functions and workers in them
    interpreter.py   the Python that runs them, and the versions of their packages
    variables.py     the variables that name the database
    schema.py        migrations, seeds, extensions; files that `poolkit budget` can read
    servers.py       the server that runs a web application, as the project starts it
    templates.py     the numbers of a function in its template
    routes.py        the paths of an application, from itself or from its source
    findings.py      all of it together, as a `[tool.poolkit]` table
    writing.py       the table as TOML, and a locustfile
    command.py       `poolkit init`

describe_application.py runs in the application's own interpreter.
"""
