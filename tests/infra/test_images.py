"""Dockerfiles, and the contexts that they are built from."""

import re
import shlex

import pytest
import yaml
from infra.deployed import INFRA, ROOT
from processes import run

DOCKERFILES = sorted([*INFRA.glob("Dockerfile.*"), *INFRA.glob("*/Dockerfile")])
SHORT = 200 * 1024  # bytes; run.py, its requirements and the certificates are less

pytestmark = pytest.mark.process


def instructions(file):
    """Return the instructions of a Dockerfile, each with its arguments as one text."""
    text = re.sub(r"\\\n(\s*#.*\n)*", " ", file.read_text())
    lines = (line.split(None, 1) for line in text.splitlines())
    return [(words[0], words[1]) for words in lines if words and not words[0].startswith("#")]


def copied_from_the_context(file):
    """Return the sources of COPY, less those of another stage."""
    for name, arguments in instructions(file):
        words = shlex.split(arguments)
        if name == "COPY" and not any(word.startswith("--from") for word in words):
            yield from (word for word in words[:-1] if not word.startswith("--"))


def test_the_repository_as_a_context_has_what_its_dockerfile_copies_alone():
    """.dockerignore lets in the files of PgBouncer's image, and nothing else: no .git, no secret."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert all(line.startswith("!") for line in lines[1:])
    # A bracket makes the file optional: COPY fails on a name, and not on a pattern.
    copied = {re.sub(r"[\[\]]", "", each) for each in copied_from_the_context(DOCKERFILES[-1])}
    assert DOCKERFILES[-1].parent.name == "pgbouncer"
    assert {line[1:] for line in lines[1:]} == copied


@pytest.mark.parametrize("file", [INFRA / "compose.yaml", INFRA / "loadtest/compose.yaml"], ids=str)
def test_no_other_image_has_the_repository_as_its_context(file):
    """.dockerignore would take its files away."""
    for service in yaml.safe_load(file.read_text())["services"].values():
        build = service.get("build")
        if build and (file.parent / build["context"]).resolve() == ROOT:
            assert build["dockerfile"] == "infra/pgbouncer/Dockerfile"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_the_head_of_a_dockerfile_has_the_command_that_builds_it(file):
    """With a platform: an image for the wrong one ends with "exec format error" in the cluster."""
    (command,) = re.findall(r"^#   (docker build .*)$", file.read_text(), re.MULTILINE)
    words = command.split()
    platform = words[words.index("--platform") + 1]
    assert platform == ("linux/amd64" if "loadtest" in file.name else "linux/arm64")
    assert "scripts/database-certificates" in file.read_text()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_pins_what_it_installs(file):
    """Wheels by hash, Debian's packages by upstream version, a base by version and release."""
    for name, arguments in instructions(file):
        if name == "RUN" and " install " in arguments and "pip" in arguments:
            assert "--require-hashes" in arguments
            assert "--only-binary" in arguments
        if "apt-get install" in arguments:
            packages = arguments.partition("--no-install-recommends")[2].partition("&&")[0].split()
            assert all(re.fullmatch(r"[a-z0-9.+-]+=\d+\.\d+\.\*", each) for each in packages)
        if name == "FROM":
            assert re.match(
                r"(python:3\.\d+-slim-\w+|public\.ecr\.aws/lambda/python:3\.\d+)", arguments
            )


@pytest.mark.timeout(300)
def test_hadolint_finds_nothing():
    """No rule is off, and informational findings count."""
    answer = run(ROOT / "scripts" / "hadolint", timeout_s=280)
    assert (answer.stdout, answer.returncode) == ("", 0), answer.stderr
    assert not (ROOT / ".hadolint.yaml").exists()


@pytest.mark.timeout(300)
def test_hadolint_fails_on_what_it_finds(tmp_path):
    """The script passes a finding on, also an informational one."""
    (tmp_path / "Dockerfile").write_text(
        "FROM python:3.13-slim-trixie\nRUN true\nRUN true\nUSER 1\n"
    )
    answer = run(ROOT / "scripts" / "hadolint", tmp_path / "Dockerfile", timeout_s=280)
    assert "DL3059" in answer.stdout
    assert answer.returncode == 1


# -- the certificates of the database's servers ----------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """The script in a folder of its own, with a certificate that OpenSSL made."""
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "database-certificates"
    script.write_bytes((ROOT / "scripts" / "database-certificates").read_bytes())
    script.chmod(0o755)
    made = run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-subj", "/CN=authority", "-keyout", tmp_path / "key.pem"),
        *("-out", tmp_path / "authority.pem"),
    )
    assert made.returncode == 0, made.stderr
    return tmp_path


def certificates(checkout, *files, **environ):
    return run(
        checkout / "scripts" / "database-certificates", *files, cwd=checkout, environ=environ
    )


def test_certificates_are_written_as_one_file(checkout):
    """Each file is checked and added; the result can be read by the image's user."""
    answer = certificates(checkout, "authority.pem", "authority.pem")
    assert answer.returncode == 0, answer.stderr
    written = checkout / "certificates" / "database-ca.crt"
    assert written.read_text().count("BEGIN CERTIFICATE") == 2
    assert written.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in written.parent.iterdir()] == ["database-ca.crt"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "<html>Forbidden</html>",
        "-----BEGIN CERTIFICATE-----\nMIIB\n",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    ],
    ids=["empty", "html", "cut", "wrong"],
)
def test_what_is_no_certificate_changes_nothing(checkout, content):
    """An empty, wrong or cut download leaves what was there, or nothing at all."""
    (checkout / "wrong.pem").write_text(content)
    answer = certificates(checkout, "authority.pem", "wrong.pem")
    assert answer.returncode == 1
    assert "wrong.pem" in answer.stderr
    assert not (checkout / "certificates").exists()


def test_a_failed_download_leaves_no_folder(checkout):
    """An empty folder would look like certificates to what packages it."""
    failing = checkout / "programs" / "curl"
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\necho 'curl: (6) Could not resolve host' >&2\nexit 6\n")
    failing.chmod(0o755)
    answer = certificates(checkout, PATH=f"{failing.parent}:/usr/bin:/bin")
    assert answer.returncode == 1
    assert "could not be downloaded" in answer.stderr
    assert not (checkout / "certificates").exists()


# -- the images' bases -----------------------------------------------------------------------

DIGEST = "sha256:" + "a" * 64
OLD = "sha256:" + "b" * 64
STAGES = "FROM python:3.13 AS build\nFROM scratch AS files\nFROM python:3.13\nFROM build\n"
DOCKER = """#!/usr/bin/env python3
import json, sys
platforms = {platforms!r}
if sys.argv[-1].startswith("private/"):
    sys.exit("ERROR: pull access denied")
manifests = [{{"platform": dict(zip(("os", "architecture"), each.split("/")))}} for each in platforms]
print(json.dumps({{"digest": {digest!r}, "manifests": manifests}}))
"""


@pytest.fixture
def bases(tmp_path):
    """A folder with two Dockerfiles, and a docker that answers for every image in it."""

    def base_images(*options, content=STAGES, **docker):
        answers = {"digest": DIGEST, "platforms": ["linux/amd64", "linux/arm64"]} | docker
        program = tmp_path / "docker"
        program.write_text(DOCKER.format(**answers))
        program.chmod(0o755)
        file = tmp_path / "infra" / "pgbouncer" / "Dockerfile"
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            file.write_text(content)
        command = [ROOT / "scripts" / "base-images", "--docker", program]
        return run(*command, "--infra", tmp_path / "infra", *options), file.read_text()

    return base_images


def test_a_base_is_pinned_renewed_and_unpinned(bases):
    """Every stage gets the digest of today, and can lose it again."""
    answer, text = bases("--pin")
    assert answer.returncode == 0, answer.stderr
    assert text == STAGES.replace("python:3.13", f"python:3.13@{DIGEST}")
    answer, text = bases("--pin", content=text, digest=OLD)
    assert text.count(OLD) == 2
    assert DIGEST not in text
    assert bases("--unpin", content=text)[1] == STAGES


def test_a_base_that_was_renewed_is_reported(bases):
    """The check fails when a pinned base is no longer what its tag names."""
    content = f"FROM python:3.13@{OLD}\n"
    answer, text = bases(content=content)
    assert (answer.returncode, text) == (1, content)
    assert "--pin" in answer.stderr
    assert bases(content=content, digest=OLD)[0].returncode == 0


@pytest.mark.parametrize("option", ["--pin", None])
def test_a_base_that_lacks_a_platform_is_refused(bases, option):
    """The templates deploy both."""
    answer, text = bases(*filter(None, [option]), platforms=["linux/amd64"])
    assert answer.returncode == 1
    assert "linux/arm64" in answer.stderr
    assert "@" not in text


def test_a_base_that_cannot_be_read_is_named(bases):
    """With what the registry answered, and without a traceback."""
    answer, _ = bases(content="FROM private/python:3.13\n")
    assert answer.returncode == 1
    assert "private/python:3.13" in answer.stderr
    assert "pull access denied" in answer.stderr
    assert "Traceback" not in answer.stderr
