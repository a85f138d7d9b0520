"""The built wheel, installed as a user installs it: what README shows works with it."""

import re
import sys
from pathlib import Path

import processes

from poolkit import __all__ as public_names

ROOT = Path(__file__).resolve().parent.parent


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

    everything = f"from poolkit import {', '.join(public_names)}; import poolkit as p; print(p)"
    assert str(environment) in run(python, "-I", "-c", everything, cwd=tmp_path)
