"""`python -m poolkit`: the command line where no script is installed, as in an image."""

from poolkit.cli import main

main(prog_name="poolkit")
