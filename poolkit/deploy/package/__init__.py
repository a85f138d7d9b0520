"""`poolkit package`: what is deployed, made from the project's files and the lock file alone.

settings.py    `[tool.poolkit.package.TARGET]` in pyproject.toml
contents.py    what goes in: locked wheels less what is not read at run time, project files
lambda_zip.py  `poolkit package lambda`: bytecode, and the same bytes from the same files
image.py       `poolkit package web|worker|loadtest`: the folder that an image is built from
command.py     the commands, and what they print
"""
