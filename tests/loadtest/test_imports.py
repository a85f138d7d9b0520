"""What the load test needs of poolkit, and of Locust."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from processes import ROOT, run_python

pytestmark = pytest.mark.process

# Every module of the package and every locustfile, while the modules that the image lacks are missing.
IMPORTS = """
import importlib, pkgutil, sys
from pathlib import Path

missing = sys.argv[2:]

class Missing:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in missing):
            raise ModuleNotFoundError(f"the image has no {name}", name=name)

sys.meta_path.insert(0, Missing())

import poolkit.loadtest
assert "locust" not in sys.modules
assert issubclass(poolkit.loadtest.TaskUser, importlib.import_module("locust").User)
for module in pkgutil.walk_packages(poolkit.loadtest.__path__, "poolkit.loadtest."):
    importlib.import_module(module.name)
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    importlib.import_module(f"loadtests.{file.stem}")
    print(file.stem)
"""


@pytest.mark.sample
def test_the_load_test_runs_without_the_modules_that_its_image_lacks():
    """Locust is imported with `TaskUser`, not with `poolkit.loadtest`."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["poolkit"]["package"]
    missing = [path.replace("/", ".") for path in settings["loadtest"]["exclude"]]
    assert {"poolkit.compare", "poolkit.lambda_fleet", "poolkit.local"} <= set(missing)
    done = run_python("-c", IMPORTS, ROOT / "loadtests", *missing)
    assert done.returncode == 0, done.stderr
    assert {"articles", "ingest"} <= set(done.stdout.split())


MEASURES = """
import sys
import poolkit.loadtest.recording, poolkit.loadtest.web_pages, poolkit.loadtest.telemetry.figures
print("locust" in sys.modules)
"""


def test_what_measures_a_load_test_does_not_import_locust():
    """Its import replaces half of the standard library, for instance in a process that tests."""
    done = run_python("-c", MEASURES)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


WARNS = """
import sys
from poolkit.loadtest import locust_internals
locust_internals.version = lambda _: sys.argv[1]
locust_internals.warn_if_untested()
"""


@pytest.mark.parametrize(
    ("version", "warns"),
    [("2.42.6", True), ("2.43.0", False), ("2.47.9", False), ("2.48.0", True), ("3.0", True)],
)
def test_an_untested_locust_is_one_warning(version, warns):
    """It names the tested versions and the installed one."""
    done = run_python("-c", WARNS, version)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == warns
    assert all("poolkit was tested with locust>=" in line and version in line for line in lines)


def test_the_tested_versions_are_those_that_can_be_installed():
    """The file with Locust's private parts names the bounds of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (wanted,) = (
        each.specifier for each in map(Requirement, extras["locust"]) if each.name == "locust"
    )
    text = (ROOT / "poolkit/loadtest/locust_internals.py").read_text()
    supported = re.search(r'^SUPPORTED = "(.*)"$', text, re.MULTILINE)[1]
    assert set(supported.split(",")) == set(str(wanted).split(","))
