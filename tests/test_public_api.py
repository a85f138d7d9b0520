"""The public API: every name, what it imports, and the built wheel as a user installs it."""

import json
import re
import sys

import processes
import pytest
from processes import ROOT, run_python

import poolkit
from poolkit import __all__ as public_names
from poolkit import errors
from poolkit.config import engine, presets, session, settings


def loaded_by(statement):
    """Return the modules that a fresh interpreter has loaded after the statement."""
    code = f"import json, sys\n{statement}\njson.dump(sorted(sys.modules), sys.stdout)"
    return set(json.loads(run_python("-c", code).stdout))


@pytest.mark.process
def test_import_poolkit_loads_the_standard_library_only():
    """Not one module of a dependency, and none of the kit's own submodules."""
    added = loaded_by("import poolkit") - loaded_by("")
    ours = {name for name in added if name.partition(".")[0] not in sys.stdlib_module_names}
    assert ours == {"poolkit"}


@pytest.mark.process
def test_a_name_loads_its_own_module_alone():
    """An error needs neither SQLAlchemy nor the settings; a preset needs no error."""
    assert "sqlalchemy" not in loaded_by("from poolkit import PoolExhausted")
    with_preset = loaded_by("from poolkit import preset")
    assert "sqlalchemy" in with_preset
    assert not {"poolkit.errors", "poolkit.config.settings"} & with_preset


@pytest.mark.parametrize("name", poolkit.__all__)
def test_every_public_name_can_be_imported(name):
    """Each is defined where it says, has a docstring, and is listed by dir()."""
    found = getattr(poolkit, name)
    assert found.__name__ == name
    assert getattr(sys.modules[found.__module__], name) is found
    assert found.__doc__
    assert name in dir(poolkit)


def test_every_error_is_public_and_stands_in_the_tree_as_it_is():
    """The drawing names each class once, below its base, with the built-in that it also is."""
    defined = {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type) and found.__module__ == errors.__name__
    }
    drawn: dict[str, tuple[str, ...]] = {}
    above: list[str] = []
    for row in re.finditer(r"^    ([│├└─ ]*)(\w+)(?: \((\w+)\))?\s", errors.__doc__, re.MULTILINE):
        branches, name, built_in = row.groups()
        above[len(branches) // 4 :] = [name]
        drawn[name] = tuple(filter(None, (*above[-2:-1], built_in)))
    assert drawn.pop("PoolkitError") == ()
    assert defined.pop("PoolkitError").__bases__ == (Exception,)
    assert drawn == {
        name: tuple(base.__name__ for base in found.__bases__) for name, found in defined.items()
    }
    assert defined.keys() <= set(poolkit.__all__)


def test_the_functions_are_their_modules_own():
    """A public name is the object itself, not a copy or a wrapper."""
    assert poolkit.make_engine is engine.make_engine
    assert poolkit.preset is presets.preset
    assert poolkit.unit_of_work is session.unit_of_work
    assert poolkit.preset_from_environ is settings.preset_from_environ


def test_an_unknown_name_is_an_attribute_error():
    """As with any module, so that `hasattr` and `from poolkit import` work as usual."""
    with pytest.raises(AttributeError, match="'poolkit' has no attribute 'make_engin'"):
        poolkit.make_engin  # noqa: B018
    assert not hasattr(poolkit, "config_for_nothing")


# -- the wheel ------------------------------------------------------------------------------


def run(*command, **options):
    done = processes.run(*command, timeout_s=200, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_alone_runs_the_readmes_example(tmp_path, database):
    """An environment with the wheel, its dependencies and a driver; nothing of the checkout."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    uv, environment = (sys.executable, "-m", "uv"), tmp_path / "environment"
    run(*uv, "venv", "--python", sys.executable, environment)
    # The lock's versions: they are in uv's cache, so that an index is seldom asked.
    locked = ("--constraint", ROOT / "requirements.lock")
    run(*uv, "pip", "install", "--python", environment, *locked, wheel, "psycopg2-binary")

    python = environment / "bin" / "python"
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (example,) = (block for block in blocks if "make_engine" in block)
    variables = {"DATABASE_URL": database.url(driver="")}
    answer = run(python, "-I", "-c", example, cwd=tmp_path, environ=variables, clean=True)
    assert "1" in answer.split()

    plugins = "from importlib.metadata import entry_points as e; print(*e(group='pytest11'))"
    assert "poolkit.pytest_plugin" in run(python, "-I", "-c", plugins, cwd=tmp_path)

    everything = f"from poolkit import {', '.join(public_names)}; import poolkit as p; print(p)"
    assert str(environment) in run(python, "-I", "-c", everything, cwd=tmp_path)
