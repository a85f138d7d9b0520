"""README and the documents: commands exist, Python blocks print what they say, links resolve."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
from celery.bin.worker import worker as celery_worker
from celery.worker.control import Panel
from processes import ROOT, run, run_python
from uvicorn import main as uvicorn_command

from poolkit.cli import main
from poolkit.experiment.experiment import find_experiments

pytestmark = pytest.mark.process


DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")
EXPERIMENTS = {"list", *find_experiments()}


def name_of(document):
    return str(document.relative_to(ROOT))


def blocks(language, *, titled=False):
    """Return every fenced block in a language; one with a title is a file of the reader's."""
    return [
        pytest.param(text, id=f"{name_of(document)}-{number}")
        for document in DOCUMENTS
        for number, (found, title, text) in enumerate(FENCE.findall(document.read_text()))
        if found == language and bool(title.strip()) == titled
    ]


# -- Python ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_print_what_their_comments_say(text, migrated_database, tmp_path):
    """A block runs as it stands, with DATABASE_URL; a comment behind `print` is the output."""
    file = tmp_path / "block.py"
    file.write_text(text)
    (tmp_path / "articles").symlink_to(ROOT / "articles")
    variables = {
        "DATABASE_URL": migrated_database.url(driver=""),
        "POOLKIT_ECHO": "false",  # the web presets of dev log statements
        "PATH": "/usr/bin:/bin",
    }
    answer = run_python(file, cwd=tmp_path, environ=variables, clean=True)
    assert answer.returncode == 0, answer.stderr
    comments = re.findall(r"^ *print\(.*\)  # (.*)$", text, re.MULTILINE)
    printed = answer.stdout.splitlines()
    if comments:
        assert len(printed) == len(comments)
    for line, comment in zip(printed, comments, strict=False):
        assert comment == line or comment.startswith(f"{line}: ")


@pytest.mark.parametrize("text", blocks("python", titled=True))
def test_python_files_of_the_reader_compile(text):
    """A block with a title is a file to write; it may import what only its reader has."""
    ast.parse(text)


@pytest.mark.parametrize("text", [*blocks("toml"), *blocks("toml", titled=True)])
def test_toml_blocks_are_toml(text):
    """Tables for pyproject.toml and for an environment's file parse."""
    tomllib.loads(text)


# -- commands -------------------------------------------------------------------------------


def shell_lines():
    """Return the command lines of each document's shell blocks, and those behind a prompt."""
    for document in DOCUMENTS:
        lines = []
        for language, _, text in FENCE.findall(document.read_text()):
            joined = text.replace("\\\n", " ").splitlines()
            if language == "sh":
                lines += joined
            elif language == "console":
                lines += [line[2:] for line in joined if line.startswith("$ ")]
        words = [shlex.split(line, comments=True) for line in lines]
        if any(words):
            yield pytest.param([each for each in words if each], id=name_of(document))


def program_of(words):
    """Return the program, its arguments, and the variables that were set before it."""
    variables = []
    while words and ASSIGNMENT.fullmatch(words[0]):
        variables.append(words.pop(0))
    return words[0], words[1:]


@pytest.mark.sample
@pytest.mark.parametrize("lines", list(shell_lines()))
def test_commands_can_be_typed_as_they_are_written(lines, tmp_path):
    """Programs take these options, and files, folders, targets and extras exist."""
    made = set()
    for words in lines:
        program, arguments = program_of(list(words))
        check = CHECKS.get(program, check_script)
        assert check is not check_script or (ROOT / program).is_file(), shlex.join(words)
        check(arguments, made)


@pytest.fixture(scope="module")
def locust_answers():
    """Parse all locust lines in one process of its own, since Locust patches its process."""
    lines = [
        # poolkit resolves the host while it reads the options.
        [word.replace("dev.example.org", "127.0.0.1") for word in program_of(list(words))[1]]
        for each in shell_lines()
        for words in each.values[0]
        if program_of(list(words))[0] == "locust"
    ]
    script = (
        "import json, sys\n"
        "from poolkit import loadtest\n"
        "loadtest.register()\n"
        "from locust.argument_parser import get_parser\n"
        "parser = get_parser(default_config_files=[])\n"
        "for words in json.loads(sys.argv[1]): parser.parse_args(words)\n"
    )
    return run_python("-c", script, json.dumps(lines))


def test_locust_takes_its_options(locust_answers):
    """Locust's own parser, with the options that poolkit adds, reads every line."""
    assert locust_answers.returncode == 0, locust_answers.stderr


def check_make(arguments, made):
    answer = run("make", "--dry-run", *arguments)
    assert answer.returncode == 0, answer.stderr


def check_poolkit(arguments, made):
    """Parse the line as click does, without doing what it says."""
    command = main
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]  # the output goes to a file
    if arguments == ["--version"]:
        return
    if arguments[0] == "package":
        made.add(ROOT / "build" / arguments[1])
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, f"poolkit has no command {name}"
        command = command.commands[name]
    context = command.make_context(command.name, list(arguments), resilient_parsing=False)
    if command.name == "experiment":
        assert set(context.params["names"]) <= EXPERIMENTS


def check_python(arguments, made):
    if arguments[0] == "-m":
        path = ROOT / arguments[1].replace(".", "/")
        assert (path / "__main__.py").is_file() or path.with_suffix(".py").is_file(), path
    else:
        assert (ROOT / arguments[0]).is_file(), arguments[0]


def check_pip(arguments, made):
    """`pip install` takes this checkout, its wheel or its repository, and extras that it has."""
    if arguments[0] == "wheel":
        assert arguments[-1] == "."
        return
    assert arguments[0] == "install"
    for argument in [each for each in arguments[1:] if each != "-e"]:
        requirement, _, url = argument.partition(" @ ")
        name, _, extras = requirement.removesuffix("]").partition("[")
        wheel = f"dist/poolkit-{PROJECT['project']['version']}-py3-none-any.whl"
        sources = {"poolkit"} if url.startswith("git+https:") else {".", wheel}
        assert name in sources, f"{requirement} is not this project"
        assert set(extras.split(",")) - {""} <= set(PROJECT["project"]["optional-dependencies"])


def check_locust(arguments, made):
    """The locustfiles exist; the options are read by `test_locust_takes_its_options`."""
    if "-f" in arguments:
        for file in arguments[arguments.index("-f") + 1].split(","):
            assert (ROOT / file).is_file(), file


def check_celery(arguments, made):
    """Celery's command line loads the application first, which is the reader's."""
    option, _, command, *rest = arguments
    assert option == "-A"
    if command == "inspect":
        assert rest[0] in Panel.meta
        return
    assert command == "worker"
    context = click.Context(celery_worker, info_name="celery worker")
    left, _, _ = celery_worker.make_parser(context).parse_args(list(rest))
    assert set(left) <= {"concurrency", "loglevel", "pool", "queues"}


def check_uvicorn(arguments, made):
    uvicorn_command.make_context("uvicorn", list(arguments), resilient_parsing=False)
    module, _, attribute = arguments[0].partition(":")
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    names = {
        name.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name)
    }
    assert attribute in names | {"app"}, arguments[0]


def check_docker(arguments, made):
    """A context is a folder that `poolkit package` writes, or this one with a Dockerfile in it."""
    if arguments[0] == "build":
        assert arguments[arguments.index("--platform") + 1] in {"linux/arm64", "linux/amd64"}
        if "--file" in arguments:
            assert (ROOT / arguments[arguments.index("--file") + 1]).is_file()
        elif arguments[-1] != ".":
            folder, target = Path(arguments[-1]).parts
            assert folder == "build"
            assert target in PROJECT["tool"]["poolkit"]["package"]
    elif arguments[0] == "compose":
        assert (ROOT / arguments[arguments.index("--file") + 1]).is_file()
    else:
        assert arguments[0] in {"pull", "push", "login", "run", "tag"}


def check_git(arguments, made):
    command, *words = arguments
    if command in {"mv", "rm"}:
        files = [each for each in words if not each.startswith("-")]
        assert all((ROOT / each).exists() for each in files[: -1 if command == "mv" else None])
    else:
        assert command == "clone"
        made.add(ROOT.parent / arguments[-1])


def check_mkdir(arguments, made):
    made.update((ROOT / folder).resolve() for folder in arguments)


def check_cp(arguments, made):
    assert all([*ROOT.glob(each)] for each in arguments[:-1])


def check_cd(arguments, made):
    folder = (ROOT / arguments[0]).resolve()
    assert folder.is_dir() or folder in made, f"no command before made {arguments[0]}"


def check_source(arguments, made):
    assert arguments == [".venv/bin/activate"], "what `make install` makes"


def check_files(arguments, made):
    """The file behind these options exists; the program itself is not installed here."""
    for option in ("--template-file", "--kustomize"):
        if option in arguments:
            assert (ROOT / arguments[arguments.index(option) + 1]).exists()


def check_dev_tool(arguments, made):
    assert arguments == ["install"]


def check_script(arguments, made):
    """A program that is none of the above is a file of this project."""


def unchecked(arguments, made):
    """A program of the reader's system, of which nothing can be checked here."""


CHECKS = {
    ".": check_source,
    "aws": check_files,
    "cd": check_cd,
    "cp": check_cp,
    "celery": check_celery,
    "docker": check_docker,
    "git": check_git,
    "kubectl": check_files,
    "locust": check_locust,
    "make": check_make,
    "mkdir": check_mkdir,
    "pip": check_pip,
    "poolkit": check_poolkit,
    "pre-commit": check_dev_tool,
    "python": check_python,
    "uvicorn": check_uvicorn,
    **dict.fromkeys(("export", "grep", "psql", "sed", "sudo"), unchecked),
}


# -- links ----------------------------------------------------------------------------------


def anchors(document):
    """Return the anchors of a document's headings, as GitHub and mkdocs both make them, and its own."""
    text = FENCE.sub("", document.read_text())
    plain = [re.sub(r"[`*_]|\[|\]\([^)]*\)", "", heading) for heading in HEADING.findall(text)]
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}
    return made | {*re.findall(r'<a id="([^"]+)">', text)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document):
    """A relative link names a file of this project and a heading in it; docs/ links into docs/."""
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_file(), f"{name_of(document)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(document)} links to {link}"
        if ROOT / "docs" in document.parents:
            assert ROOT / "docs" in target.parents, f"the site lacks {link}"


def test_every_page_is_in_the_site_and_no_page_is_lost():
    """mkdocs.yml names every page of docs/, once."""
    text = (ROOT / "mkdocs.yml").read_text()
    pages = re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE)
    found = [str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")]
    assert sorted(pages) == sorted(found)


# -- names of folders, files and modules ----------------------------------------------------


CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
WRITTEN = {"build", "certificates", "site"}
"""Folders that a command writes."""


@pytest.mark.sample
@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if each.name != "CHANGELOG.md"], ids=name_of
)
def test_named_files_and_modules_exist(document):
    """A path below one of this project's folders, and a dotted name that begins with poolkit."""
    for name in CODE.findall(FENCE.sub("", document.read_text())):
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)+", name) and name.split("/")[0] in FOLDERS - WRITTEN:
            assert re.search("NAME|TARGET", name) or (ROOT / name).exists(), (
                f"{name_of(document)} names {name}"
            )
        elif re.fullmatch(r"poolkit(\.\w+)+", name):
            assert is_in_code(name.split(".")), f"{name_of(document)} names {name}"


def is_in_code(parts):
    """Return whether a module, or a name at the top of one, has this dotted name."""
    path = ROOT
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    file = path / f"{parts[0]}.py" if parts else path
    if parts and file.is_file():
        parts.pop(0)
    elif parts:
        file = path / "__init__.py"
    return not parts or re.search(rf"\b{parts[0]}\b", file.read_text()) is not None


@pytest.mark.sample
def test_the_design_lists_every_folder_and_every_package_of_the_library():
    """The two tables of the design page, against the folders that hold code."""
    text = (ROOT / "docs/design.md").read_text()
    rows = re.findall(r"^\| (.+?) \|", text, re.MULTILINE)
    folders = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w]+/)`", row)}
    packages = {name for row in rows for name in re.findall(r"`poolkit\.(\w+)`", row)}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= folders <= FOLDERS
    here = {path.parent.name for path in (ROOT / "poolkit").glob("*/__init__.py")}
    assert packages == here | {"errors"}


@pytest.mark.sample
@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_named_experiments_exist(document):
    """`poolkit experiment NAME` in a text; the lines of shell blocks are parsed above."""
    named = re.findall(r"`poolkit experiment ([\w ]+)`", document.read_text())
    assert {name for each in named for name in each.split()} <= EXPERIMENTS | {"NAME"}


# -- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_avoid_vague_persons(document):
    """The style page's rule, where a machine can check it."""
    vague = "no" + "body|some" + "body|who" + "ever"
    assert not re.search(rf"\b({vague})\b", document.read_text(), re.IGNORECASE)


# -- the site -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.sample
def test_the_site_builds_strictly_and_fetches_nothing_from_elsewhere(tmp_path):
    """`make docs`; every command has a section, and no page loads a file of another host."""
    answer = run_python("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path)
    assert answer.returncode == 0, answer.stderr
    commands = (tmp_path / "cli.html").read_text()
    for name in main.commands:
        assert re.search(rf'<h2 id="poolkit-{name}\b', commands), name
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//")
    for page in tmp_path.glob("**/*.html"):
        assert not loaded.search(page.read_text()), page.name
