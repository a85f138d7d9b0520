"""The folders that images are built from: their modes, their certificates, the command that builds."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from poolkit_command import ROOT, refused, run_process, succeeded
from processes import run

pytestmark = pytest.mark.process

IMAGE_USER = 10001
PROJECT = """\
[project]
name = "shop"
version = "1"
dependencies = []

[tool.poolkit.package.worker]
include = ["shop"]
include_if_there = ["certificates"]
"""


@pytest.fixture
def project(tmp_path):
    """A project whose files are private to their owner, as a umask of 077 makes them."""
    folder = tmp_path / "project"
    (folder / "shop").mkdir(parents=True)
    (folder / "infra").mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "requirements.lock").write_text("")
    (folder / "shop/__init__.py").write_text("PRICE = 3\n")
    (folder / "shop/start.sh").write_text("#!/bin/sh\nexit 0\n")
    (folder / "infra/Dockerfile.worker").write_text("FROM scratch\n")
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)
    return folder


def package(project, *options):
    """Run `poolkit package worker` with a umask of 077."""
    command = f'umask 077; exec "{ROOT}/.venv/bin/python" -m poolkit package worker "$@"'
    return run("sh", "-c", command, "sh", *options, cwd=project, clean=True)


def test_every_file_of_a_context_can_be_read_by_every_user(project):
    """COPY keeps modes: with those of a private checkout the image's user could read nothing."""
    answer = package(project)
    assert answer.returncode == 0, answer.stderr
    context = project / "build" / "worker"
    modes = {
        path.relative_to(context).as_posix(): path.stat().st_mode & 0o777
        for path in (context, *context.rglob("*"))
    }
    assert modes == {
        ".": 0o755,
        ".poolkit-context": 0o644,
        "Dockerfile": 0o644,
        "requirements.txt": 0o644,
        "shop": 0o755,
        "shop/__init__.py": 0o644,
        "shop/start.sh": 0o755,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the image's user")
def test_the_images_user_imports_what_was_copied(project):
    """As COPY does it: root owns the files, the modes stay, and the user is another one."""
    assert package(project).returncode == 0
    image = Path(tempfile.mkdtemp())
    try:
        image.chmod(0o755)
        shutil.copytree(project / "build" / "worker", image / "app")
        code = (
            "import shop, pathlib; pathlib.Path('requirements.txt').read_text(); print(shop.PRICE)"
        )
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-B", "-c", code],
            cwd=image / "app",
            user=IMAGE_USER,
            group=IMAGE_USER,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin:/usr/local/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("3\n", "")
    finally:
        shutil.rmtree(image)


# -- certificates ---------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "an empty folder"])
def test_missing_certificates_are_named_with_the_command_that_writes_them(project, there):
    """A folder without a file is as good as none, also with what an interrupted download left."""
    if there:
        (project / "certificates").mkdir()
        (project / "certificates/.partial.x").write_text("")
    answer = succeeded(package(project), "without certificates")
    assert "scripts/database-certificates" in answer


@pytest.mark.parametrize("content", ["", "<html>Forbidden</html>"], ids=["empty", "html"])
def test_a_file_without_certificates_is_refused(project, content):
    """The tasks of an image that has it could never connect."""
    (project / "certificates").mkdir()
    (project / "certificates/database-ca.crt").write_text(content)
    refused(package(project), "database-ca.crt", "scripts/database-certificates", lines=1)
    assert not (project / "build/worker").exists()


def test_certificates_that_openssl_cannot_read_are_named(project):
    """A file that was cut off begins as it should."""
    (project / "certificates").mkdir()
    (project / "certificates/database-ca.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n")
    succeeded(package(project), "OpenSSL reads no certificate", "certificates/database-ca.crt")


# -- the machine ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "platform"), [((), "linux/arm64"), (("--architecture", "x86_64"), "linux/amd64")]
)
def test_the_command_that_builds_has_the_platform(project, options, platform):
    """The default of an engine is the machine that builds, which is seldom the one that runs."""
    build = f"docker build --platform {platform} --tag poolkit-worker build/worker"
    succeeded(package(project, *options), build)


def test_the_command_that_builds_names_another_folder(project):
    """--out is in it, as seen from where the command was given."""
    answer = package(project, "--out", "../elsewhere/context")
    succeeded(answer, "--tag poolkit-worker ../elsewhere/context")


def test_the_sample_is_packaged_for_the_architecture_of_its_template(tmp_path):
    """The loadtest's image is for x86_64, as its template says."""
    answer = run_process("package", "loadtest", "--out", tmp_path / "context")
    succeeded(answer, "docker build --platform linux/amd64 --tag poolkit-loadtest")
