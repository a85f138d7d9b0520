"""The function's zip: what is in it, that it is the same each time, and that it runs."""

import contextlib
import http.client
import json
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from processes import ROOT, run

from poolkit.deploy.package.contents import find_uv
from poolkit.deploy.package.lambda_zip import (
    LIMIT,
    compile_folder,
    find_interpreter,
    package_lambda,
    read_manifest,
    sha256,
)
from poolkit.errors import PackageError
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet

# Wheels are fetched, installed and compiled.
pytestmark = pytest.mark.timeout(600)


def names(package):
    with zipfile.ZipFile(package.file) as archive:
        return archive.namelist()


def request(fleet, method, path, body=None):
    address, headers = urlsplit(fleet.url).netloc, {"content-type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection(address, timeout=100)) as connection:
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_the_unpacked_zip_answers_with_nothing_else_to_import(
    unpacked, bare_runtime, tmp_path, migrated_database
):
    """In an empty folder, under an interpreter that has awslambdaric alone, it serves the API."""
    missing = run(bare_runtime, "-c", "import sqlalchemy")
    assert "No module named 'sqlalchemy'" in missing.stderr
    before = sorted(unpacked.rglob("*"))
    config = FunctionConfig(
        handler="lambda_handler.app.handler",
        task_root=unpacked,
        python=bare_runtime,
        env={"DATABASE_URL": migrated_database.url()},
        reserved_concurrency=1,
        timeout_s=100,
        init_limit_s=100,
    )
    with LambdaFleet(config, log_dir=tmp_path / "logs") as fleet:
        status, created = request(fleet, "POST", "/articles", {"title": "t", "body": "b"})
        assert status == 201
        assert request(fleet, "GET", "/articles/1") == (200, created)
    # Lambda's folder is read-only: whatever had to be written would be written each time.
    assert sorted(unpacked.rglob("*")) == before


@pytest.mark.slow
def test_two_builds_are_the_same_bytes(built, this_machine, tmp_path):
    """Nothing of the time, the place or the order of the build is in the zip."""
    again = package_lambda(replace(this_machine, out=str(tmp_path / "again.zip")))
    assert again.sha256 == built.sha256 == sha256(built.file)


def test_times_and_permissions_are_fixed(built):
    """Every entry is of 1980; everybody may read it; shared objects may be executed."""
    with zipfile.ZipFile(built.file) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            shared = ".so" in entry.filename.rpartition("/")[2]
            assert entry.external_attr >> 16 == (0o100755 if shared else 0o100644), entry.filename


def test_it_is_small_enough_and_says_what_takes_the_room(built):
    """Lambda takes 50 MB; the parts add up to the whole."""
    assert built.zipped < LIMIT
    assert sum(size for _, size, _ in built.parts) == built.unzipped
    assert {"sqlalchemy", "psycopg2_binary.libs"} <= {name for name, *_ in built.parts[:4]}


def test_every_module_has_bytecode_that_is_never_checked(built):
    """PEP 552: flags 1 are a hash that the import system takes on trust."""
    with zipfile.ZipFile(built.file) as archive:
        compiled = [name for name in archive.namelist() if name.endswith(".pyc")]
        sources = [name for name in archive.namelist() if name.endswith(".py")]
        assert len(compiled) == len(sources) > 300
        for name in compiled:
            assert archive.read(name)[4:8] == b"\x01\0\0\0", name
        bytecode = archive.read(
            next(name for name in compiled if "lambda_handler/__pycache__/schemas." in name)
        )
        assert b"/var/task/lambda_handler/schemas.py" in bytecode
    assert built.bytecode


def test_what_a_function_does_not_need_stays_at_home(built):
    """No tests, no stubs, no SDK that the runtime has, no other deployable, no command line."""
    unwanted = re.compile(
        r"(^|/)(tests?|\.[^/]+)/|(^|/)(\.env.*|\.lock|RECORD|INSTALLER)$|\.pyi$|\.pyx$"
        r"|^(boto3|botocore|webapp|worker|fastapi|celery|alembic|pydantic|greenlet|bin)/"
        r"|^poolkit/(?!__init__|errors|config|cold_start|execution_environment|powertools|preconditions"
        r"|problems|tables|__pycache__)|^articles/(migrations|schemas)"
    )
    assert [name for name in names(built) if unwanted.search(name)] == []


def test_it_says_what_it_was_made_for(built, this_machine):
    """The manifest names the machine, the Python and the locked versions."""
    manifest = read_manifest(built.file)
    assert manifest["architecture"] == this_machine.architecture
    assert manifest["python"] == this_machine.python
    lock = this_machine.lock_file.read_text()
    requirements = manifest["requirements"]
    assert isinstance(requirements, list)
    assert all(f"{pin} " in lock for pin in requirements)
    assert any(pin.startswith("psycopg2-binary==") for pin in requirements)


@pytest.mark.sample
@pytest.mark.process
def test_a_handler_that_is_not_included_is_named(this_machine, tmp_path):
    """A zip whose function could not start is not made."""
    out = tmp_path / "lambda.zip"
    with pytest.raises(PackageError, match=r"webapp\.app\.app is not in the package"):
        package_lambda(replace(this_machine, out=str(out)), handler="webapp.app.app")
    assert not out.exists()


@pytest.mark.sample
@pytest.mark.slow
def test_without_an_interpreter_of_that_minor_it_says_so(run, tmp_path):
    """Made for a Python that is not here, the zip has no bytecode, and the output says why."""
    minor = next(
        (m for m in ("3.14", "3.13", "3.12") if not find_interpreter(m, find_uv(ROOT))), ""
    )
    if not minor:
        pytest.skip("every Python that Lambda has is installed here")
    out = tmp_path / "lambda.zip"
    answer = run("package", "lambda", "--out", out, "--python", minor)
    assert answer.returncode == 0, answer.stderr
    assert f"bytecode: NONE, because no Python {minor} was found here" in answer.stdout
    assert "psycopg2_binary.libs" in answer.stdout
    manifest = read_manifest(out)
    assert manifest.pop("requirements")
    assert manifest == {"architecture": "arm64", "python": minor, "bytecode": False}
    with zipfile.ZipFile(out) as archive:
        assert any("aarch64-linux-gnu.so" in name for name in archive.namelist())


@pytest.mark.process
def test_a_script_that_starts_an_interpreter_is_followed_to_it(tmp_path, monkeypatch):
    """A version manager's needs variables and PATH; compiling gets neither, so it gets the program."""
    shim, module = tmp_path / "python", tmp_path / "code/module.py"
    shim.write_text('#!/bin/sh\nexec "${PYTHON_OF_THE_SHIM:?}" "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PYTHON_OF_THE_SHIM", sys.executable)
    found = find_interpreter(f"{sys.version_info[0]}.{sys.version_info[1]}", Path("uv"), shim)
    module.parent.mkdir()
    module.write_text("ANSWER = 42\n")
    compile_folder(module.parent, found)
    assert list(module.parent.rglob("*.pyc"))


@pytest.mark.process
def test_an_interpreter_of_another_minor_is_refused(run, tmp_path):
    """Bytecode of another minor version would be ignored by the runtime."""
    out = tmp_path / "lambda.zip"
    words = ("--out", out, "--python", "3.14", "--interpreter", sys.executable)
    answer = run("package", "lambda", *words)
    assert answer.returncode == 2
    assert "should be Python 3.14, but is 3." in answer.stderr
