"""The database of an environment, reached by a task of the stack `migrate` inside the VPC.

task.py       one task: started, its log on the terminal, its exit status
stack.py      the stack's outputs, and its record of the images that fit the schema
command.py    `poolkit migrate` and `poolkit db role -e`
release.py    `poolkit deploy`, which refuses code that the schema is behind of
"""
