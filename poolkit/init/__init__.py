"""`poolkit init`: the parts of a user's project, read from its files.

    sources.py       the project's Python files, parsed, with their import names
    applications.py  web applications, functions and workers in them
    runtime.py       the Python that runs them, their server, the numbers of a function
    variables.py     the variables that name the database
    schema.py        migrations, seeds, extensions; files that `poolkit budget` can read
    routes.py        the paths of an application, from itself or from its source
    findings.py      all of it together, as a `[tool.poolkit]` table
    writing.py       the table as TOML, and a locustfile
    command.py       `poolkit init`

describe_application.py runs in the application's own interpreter.
"""
