"""What texts say about installing poolkit, and each documented way in an environment of its own."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from processes import ROOT, run

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
INSTALLERS = re.compile(
    r"""\b(?:
        (?:pip3?|pip3?\.\d+) \s+ (?:install|download|wheel)
      | uv \s+ (?:add|pip\s+install|tool\s+(?:install|run)|run\s+--with)
      | uvx
      | pipx \s+ (?:install|run|inject\s+\S+)
      | (?:poetry|pdm|rye|pipenv|conda|mamba) \s+ (?:add|install)
    )\b""",
    re.VERBOSE,
)
BARE = re.compile(
    r"""(?<![\w./-])poolkit(?:\[[\w,\s-]*\])?+(?![\w./\[-]|\s*@)(?:\s*[=<>~!]=?\s*[\w.*]+)?"""
)
EXTRAS = re.compile(r"""(?<![\w./-])poolkit\[[a-z][\w,\s-]*\](?!\s*@)""")
TEXTS = (
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("poolkit/**/*.py"),
    *ROOT.glob("infra/**/*"),
    *ROOT.glob("scripts/*"),
    *ROOT.glob(".github/**/*"),
    *ROOT.glob("*.y*ml"),
    *(file for name in ("articles", "webapp", "worker", "lambda_handler", "loadtests", "experiments")
      for file in ROOT.glob(f"{name}/**/*.py")),
    *ROOT.glob("Makefile"),
)  # fmt: skip


def name_of(file):
    return str(file.relative_to(ROOT))


def prose(file):
    """Return a file's text as a reader gets it: strings joined, line ends as spaces."""
    text = file.read_text(errors="ignore")
    if file.suffix == ".py":
        # Adjacent strings of Python are one text; a placeholder says nothing about a name.
        joined = [
            "".join(
                part.value if isinstance(part, ast.Constant) else "{}"
                for part in (node.values if isinstance(node, ast.JoinedStr) else [node])
            )
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.JoinedStr)
            or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        ]
        comments = re.findall(r"#(.*)", text)
        return [re.sub(r"\s+", " ", each) for each in [*joined, " ".join(comments)]]
    text = text.replace("\\\n", " ")
    if file.suffix != ".md":
        return text.splitlines()
    # Prose goes on in the next line; a command does not.
    blocks = re.split(r"^```.*$", text, flags=re.MULTILINE)
    wrapped = [" ".join(each.split()) for block in blocks[::2] for each in block.split("\n\n")]
    return wrapped + [line for block in blocks[1::2] for line in block.splitlines()]


def bare_names(text):
    """Return the requirements in a text that an index would answer: the bare name, or its extras.

    A command ends with its quotation mark, a semicolon, or the end of the sentence.
    """
    found = [match[0] for match in EXTRAS.finditer(text)]
    for command in INSTALLERS.finditer(text):
        rest = re.split(r"`|;|&&|\|| \$ |\. [A-Z]", text[command.end() :])[0]
        # Up to the first word that no command line has: prose goes on after it.
        rest = re.split(r",| (?:in|of|from|would|or|and|is) ", rest)[0]
        found += [match[0] for match in BARE.finditer(rest)]
    return found


@pytest.mark.parametrize(
    "text",
    [
        "run `pip install poolkit` first",
        "pip install 'poolkit[infra]'",
        'python -m pip install --upgrade "poolkit[web]==0.2.0"',
        "uv add poolkit",
        "uv pip install -q poolkit",
        "uv tool install 'poolkit[cli]'",
        "uvx poolkit budget",
        "pipx install poolkit",
        "poetry add poolkit>=0.2",
        "pip install boto3 poolkit",
        "needs pyarrow: pip install 'poolkit[parquet]', or name a .csv file",
        'dependencies = ["poolkit[web]"]',
    ],
)
def test_a_bare_name_is_found(text):
    """Every installer, with options, extras and versions, and a requirement with extras."""
    assert bare_names(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install '.[infra]' in a checkout of poolkit",
        "pip install dist/poolkit-0.2.0-py3-none-any.whl",
        "pip install 'dist/poolkit-0.2.0-py3-none-any.whl[infra]'",
        "pip install 'poolkit[infra] @ git+https://git.example.org/poolkit.git'",
        "pip install ./poolkit",
        "pip install locust; poolkit compare",
        "run `pip install .` and then poolkit init",
    ],
)
def test_what_names_a_source_is_not(text):
    """A path, a wheel, a Git URL, and the command behind an installation."""
    assert not bare_names(text)


def test_no_text_installs_poolkit_by_its_bare_name():
    """Messages, comments and pages name a source: there is no such distribution on an index."""
    own = "`pip install poolkit` would install whatever is published there"
    found = {
        name_of(file): bare
        for file in TEXTS
        if file.is_file() and file.suffix not in {".pyc", ".png"}
        if (bare := [each for text in prose(file) for each in bare_names(text.replace(own, ""))])
    }
    assert found == {}


def test_an_extra_in_a_message_exists():
    """`how_to_install("x")` and `'.[x]'` name extras of pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = set(extras["optional-dependencies"])
    for file in TEXTS:
        if file.is_file() and file.suffix in {".py", ".md", ".yaml", ".yml", ".toml"}:
            text = file.read_text()
            named = re.findall(r"""how_to_install\(['"]([\w-]+)['"]\)""", text)
            named += [
                extra
                for each in re.findall(r"'\.\[([\w,-]+)\]'", text)
                for extra in each.split(",")
            ]
            assert set(named) <= known, name_of(file)


# -- each way, as documented ------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project's files in a Git repository with a tag of the version."""
    folder = tmp_path_factory.mktemp("checkout") / "poolkit"
    for name in ("poolkit", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "all")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    subprocess.run(["git", "tag", f"v{VERSION}"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def impostor(tmp_path_factory):
    """A folder with a distribution of the same name and a higher version, as others may publish."""
    folder = tmp_path_factory.mktemp("index")
    records = {
        "poolkit/__init__.py": "raise SystemExit('this is the code of others')\n",
        "poolkit-99.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: poolkit\nVersion: 99.0\n"
        "Provides-Extra: aws\nProvides-Extra: cli\nProvides-Extra: infra\n",
        "poolkit-99.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / "poolkit-99.0-py3-none-any.whl", "w") as wheel:
        for name, text in records.items():
            wheel.writestr(name, text)
        record = "".join(f"{name},,\n" for name in records)
        wheel.writestr("poolkit-99.0.dist-info/RECORD", record)
    return folder


def documented(heading):
    """Return the commands under a heading of the page on installing."""
    page = (ROOT / "docs/installing.md").read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("heading", ["From a checkout", "From a wheel", "From a Git URL"])
def test_each_documented_way_installs_this_project(heading, checkout, impostor, tmp_path):
    """A fresh environment gets this version with the extra `infra`, whatever an index has."""
    commands = documented(heading)
    if heading == "From a checkout":
        commands = [each for each in commands if "infra" in each]
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    variables = {
        "PIP_FIND_LINKS": str(impostor),
        "PIP_CONSTRAINT": str(_versions(tmp_path)),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_COMPILE": "1",
        # The page's URL leads to the checkout, which stands for the server.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{checkout}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.example.org/your-team/poolkit.git",
    }
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "pip"
        done = run(python, "-m", "pip", "-q", *words, cwd=checkout, environ=variables)
        assert done.returncode == 0, done.stdout + done.stderr
    for words in (("--version",), ("deploy", "--help"), ("budget", "--help")):
        done = run(tmp_path / "venv/bin/poolkit", *words, cwd=tmp_path, clean=True)
        assert done.returncode == 0, done.stderr
        if words == ("--version",):
            assert done.stdout.split()[-1] == VERSION


def _versions(folder):
    """Return the lock's versions without its hashes, which pip would demand of poolkit too."""
    locked = re.findall(r"^([\w.-]+==\S+)( ;.*?)?(?: \\)?$", _lock(), re.MULTILINE)
    file = folder / "versions.txt"
    file.write_text("".join(f"{name}{marker}\n" for name, marker in locked))
    return file


def _lock():
    return (ROOT / "requirements.lock").read_text()
