"""Which files of a project travel, and what a project may say about it."""

import json

import pytest
from poolkit_command import ROOT, refused

from poolkit.deploy.package.contents import holds_private_key

pytestmark = pytest.mark.process

KEY = """\
-----BEGIN RSA PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED

MIIEvQIBADANBgkqhkiG9w0BAQEFAASC
-----END RSA PRIVATE KEY-----
"""
PROJECT = """\
[project]
name = "stranger"
version = "1"
dependencies = []

[tool.poolkit.package.worker]
include = ["shop"]
exclude = ["shop/old"]
include_if_there = ["certificates", "elsewhere"]
"""


@pytest.fixture
def project(tmp_path):
    """Make a project that has never heard of this one, with things that must stay at home."""
    files = {
        "pyproject.toml": PROJECT,
        "requirements.lock": "",
        "shop/__init__.py": "",
        "shop/rates.json": "{}",
        "shop/old/module.py": "",
        "shop/old/server.pem": KEY,
        "shop/.env": "PASSWORD=secret",
        "shop/prod.env": "PASSWORD=secret",
        "shop/server.pem": KEY,
        "shop/account.json": json.dumps({"private_key": KEY}),
        "shop/jwt.py": f"def is_key(text):\n    return text.startswith({KEY.splitlines()[0]!r})\n",
        "certificates/ca.pem": "-----BEGIN CERTIFICATE-----",
        "shop/tests/test_shop.py": "",
        "shop/__pycache__/stale.cpython-311.pyc": "",
        "elsewhere.py": "",
    }
    for name, text in files.items():
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "project"


def test_a_context_has_what_is_included_and_no_secret(project, run):
    """Hidden files, keys and tests are left out and named; what was not included is not there."""
    answer = run("package", "worker", cwd=project)
    assert answer.returncode == 0, answer.stderr
    context = project / "build" / "worker"
    found = {path.relative_to(context).as_posix() for path in context.rglob("*") if path.is_file()}
    assert found == {
        *(".poolkit-context", "certificates/ca.pem", "requirements.txt"),
        *("shop/__init__.py", "shop/jwt.py", "shop/rates.json"),
    }
    secret = ("shop/.env", "shop/account.json", "shop/prod.env", "shop/server.pem")
    for name in (*secret, "shop/tests"):
        assert name in answer.stdout
    assert "shop/old" not in answer.stdout
    assert "without elsewhere, which include_if_there names" in answer.stdout
    assert "without certificates" not in answer.stdout
    assert "no Dockerfile" in answer.stdout


def test_a_module_with_a_private_key_is_refused(project, run):
    """Left out, it would be missing where it is imported; taken along, the key would travel."""
    (project / "shop/keys.py").write_text(f'SECRET = """{KEY}"""\n')
    refused(run("package", "worker", cwd=project), "shop/keys.py holds a private key")


def test_this_project_names_a_keys_header_and_is_packaged_whole():
    """What looks for keys is no key."""
    sources = [*ROOT.glob("poolkit/**/*.py"), *ROOT.glob("webapp/**/*.py")]
    assert not any(map(holds_private_key, sources))


def test_the_dockerfile_comes_along(project, run):
    """Found in infra/, it stands at the context's top, and a second run replaces the first."""
    for text in ("FROM scratch\n", "FROM scratch\nUSER 1000\n"):
        (project / "infra").mkdir(exist_ok=True)
        (project / "infra/Dockerfile.worker").write_text(text)
        assert run("package", "worker", cwd=project).returncode == 0
        assert (project / "build/worker/Dockerfile").read_text() == text


def test_a_folder_that_poolkit_did_not_write_is_not_replaced(project, run):
    """Only what an earlier run wrote is removed."""
    (project / "build/worker").mkdir(parents=True)
    precious = project / "build/worker/precious.txt"
    precious.write_text("mine")
    refused(run("package", "worker", cwd=project), "did not write")
    assert precious.read_text() == "mine"


@pytest.mark.sample
def test_this_projects_own_contexts_pin_with_hashes(run, tmp_path):
    """Each requirement of the image is a locked version with the lock's hashes."""
    answer = run("package", "worker", "--out", tmp_path / "context")
    assert answer.returncode == 0, answer.stderr
    text = (tmp_path / "context/requirements.txt").read_text()
    assert "celery==" in text
    assert "moto==" not in text
    assert text.count("--hash=sha256:") > text.count("==")
    assert not (tmp_path / "context/poolkit/compare").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('include = ["shop"]', "include = []"), "include must name the files and folders"),
        (('include = ["shop"]', 'include = ["shpo"]'), "include names 'shpo', but there is no"),
        (('include = ["shop"]', 'include = [".."]'), "lies outside of"),
        (('include = ["shop"]', 'include = "shop"'), "must be a list of strings, not 'shop'"),
        (("exclude =", "exlude ="), "exlude is unknown; known are architecture"),
        (('name = "stranger"', ""), "uv could not find what worker needs"),
        (("dependencies = []", 'dependencies = ["click"]'), "does not lock click=="),
        (("package.worker", "package.web"), "[tool.poolkit.package.worker] is missing"),
    ],
)
def test_a_mistake_in_the_table_is_one_line(project, run, change, message):
    """The line names the key and its table, and has what was found."""
    (project / "pyproject.toml").write_text(PROJECT.replace(*change))
    refused(run("package", "worker", cwd=project), message, lines=1)
    assert not list(project.glob("build/*"))


def test_a_link_to_the_outside_is_refused(project, run):
    """A package holds no file that is not the project's."""
    (project / "shop/passwd").symlink_to("/etc/passwd")
    refused(run("package", "worker", cwd=project), "is a link to a file outside")


@pytest.mark.parametrize(
    ("link", "to", "message"),
    [
        ("shop/again", ".", "the folder that it is in"),
        ("shop/gone", "nothing_here", "which does not exist"),
        ("shop/other", "../common", "the folder that it is in"),
    ],
)
def test_a_link_that_cannot_be_packaged_is_refused(project, run, link, to, message):
    """Left out in silence, the package would lack a module; followed, it would have no end."""
    (project / "common").mkdir()
    (project / "common/self").symlink_to("../common")
    (project / link).symlink_to(to)
    refused(run("package", "worker", cwd=project), message, lines=1)


def test_a_link_is_packaged_as_its_target_and_reported(project, run):
    """Files and folders alike; a link's name does not make a secret another file."""
    (project / "common").mkdir()
    (project / "common/prices.py").write_text("VAT = 19\n")
    (project / "shop/prices.py").symlink_to("../common/prices.py")
    (project / "shop/common").symlink_to("../common")
    (project / ".env").write_text("PASSWORD=x\n")
    (project / "shop/settings.txt").symlink_to("../.env")
    answer = run("package", "worker", cwd=project)
    assert answer.returncode == 0, answer.stderr
    shop = project / "build/worker/shop"
    assert (shop / "prices.py").read_text() == "VAT = 19\n"
    assert (shop / "common/prices.py").is_file()
    assert not (shop / "prices.py").is_symlink()
    assert not (shop / "settings.txt").exists()
    assert "shop/common -> common" in answer.stdout
    assert "shop/prices.py -> common/prices.py" in answer.stdout
    assert "shop/settings.txt -> .env" in answer.stdout


def test_a_missing_lock_is_named(project, run):
    """Nothing is packaged that is not locked."""
    (project / "requirements.lock").unlink()
    refused(run("package", "worker", cwd=project), "requirements.lock is missing")
