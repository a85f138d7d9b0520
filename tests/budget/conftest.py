"""A folder of templates, for the budget's tests."""

import textwrap

import pytest
from poolkit_command import run_here

from poolkit.budget.command import compute_budget
from poolkit.budget.model import Options


class Folder:
    def __init__(self, path):
        self.path = path

    def write(self, name, text):
        """Write a file without the common indentation of its lines."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"))
        return file

    def budget(self, *paths, **options):
        """Return the budget of the only database."""
        return self.budgets(*paths, **options).only

    def budgets(self, *paths, **options):
        """Return the budgets of all databases."""
        named = tuple(self.path / each for each in paths) or (self.path,)
        return compute_budget(Options(paths=named, **options))

    def run(self, *arguments, columns="80"):
        return run_here("budget", *arguments, cwd=self.path, COLUMNS=columns)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def ceilings():
    """A function that returns each service's ceiling by its name."""
    return lambda budget: {service.name: service.ceiling for service in budget.services}
