"""The preset file alone: copied beside nothing but SQLAlchemy and a driver, it does the same."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import run

from poolkit.config import presets
from poolkit.config.presets import ENVIRONMENTS, TARGETS, preset

pytestmark = pytest.mark.process

OTHERS = ("3.12", "3.13", "3.14")
CHECK = """
import json, sys
import presets
from sqlalchemy import text

url = sys.stdin.readline().strip()
web = presets.preset("web", "prod").replace(ping_after_idle=60, connect_timeout=60)
engine = web.create_engine(url, application_name="copy:1")
with engine.connect() as connection:
    first = connection.scalar(text("SELECT pg_backend_pid()"))
    kind = type(connection.connection.dbapi_connection).__module__
pings = []
real = engine.dialect.do_ping
engine.dialect.do_ping = lambda c: pings.append(1) or real(c)
other = presets.preset("script").create_engine(url)
with engine.connect() as connection:
    assert connection.scalar(text("SELECT pg_backend_pid()")) == first
assert not pings
with other.connect() as connection:
    connection.execute(text(f"SELECT pg_terminate_backend({first}, 60000)"))
with engine.connect() as connection:
    assert connection.scalar(text("SELECT pg_backend_pid()")) != first
engine.dispose()
options = {
    f"{target} {environment}": repr(presets.preset(target, environment).engine_options(
        "postgresql://me@db.example.com/app", application_name="x:1"))
    for target in presets.TARGETS for environment in presets.ENVIRONMENTS
}
assert not any(name.partition(".")[0] == "poolkit" for name in sys.modules)
print(json.dumps(options))
"""


@pytest.fixture
def copy(tmp_path):
    """A folder with the file, and one with what it may import."""
    alone, allowed = tmp_path / "alone", tmp_path / "allowed"
    alone.mkdir()
    allowed.mkdir()
    shutil.copy(presets.__file__, alone / "presets.py")
    for name in ("sqlalchemy", "psycopg2", "typing_extensions"):
        place = Path(find_spec(name).origin)
        place = place.parent if place.name == "__init__.py" else place
        (allowed / place.name).symlink_to(place)
    libraries = Path(find_spec("psycopg2").origin).parents[1] / "psycopg2_binary.libs"
    if libraries.exists():
        (allowed / libraries.name).symlink_to(libraries)
    return alone, allowed


def test_the_copy_gives_the_same_engines(copy, database):
    """Same options for the whole table, and the pool's checks work, with nothing else to import."""
    alone, allowed = copy
    start = f"import sys; sys.path[:0] = [{str(alone)!r}, {str(allowed)!r}]\n"
    command = (sys._base_executable, "-I", "-S", "-c", start + CHECK)
    done = run(*command, typed=database.url(""), cwd=alone, clean=True)
    assert done.returncode == 0, done.stderr
    here = {
        f"{target} {environment}": repr(
            preset(target, environment).engine_options(
                "postgresql://me@db.example.com/app", application_name="x:1"
            )
        )
        for target in TARGETS
        for environment in ENVIRONMENTS
    }
    assert json.loads(done.stdout) == here


@pytest.mark.parametrize("version", OTHERS)
def test_the_file_compiles_under_other_pythons(copy, version):
    """Nothing in it is too old or too new for the Pythons that the project supports."""
    python = _of_pyenv(version) or shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    alone, _ = copy
    done = run(python, "-W", "error", "-m", "compileall", "-q", alone)
    assert done.returncode == 0, done.stdout + done.stderr


def _of_pyenv(version):
    # Before PATH, where pyenv has stand-ins for versions that are not chosen.
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    return str(found[0]) if found else None
