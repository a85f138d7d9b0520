"""The commands of the pipelines to copy: each exists, and both pipelines release alike."""

import re
import shlex

import click
import pytest
from infra.deployed import INFRA, ROOT
from infra.test_pipelines import COPIED, GITLAB, JOBS, read

from poolkit.cli import main

KEYWORDS = {"workflow", "stages", "variables", "include"}
"""The keys of a GitLab pipeline that have no scripts."""
OWN = re.compile(r"\s*(poolkit|make|scripts/[\w-]+)\b")


def scripts():
    """Return the lines of each script, in order: GitHub's steps and GitLab's jobs."""
    for param in JOBS:
        job = param.values[0]
        if job.file in COPIED:
            for number, step in enumerate(job.steps):
                if "run" in step:
                    for image in job.job.get("strategy", {}).get("matrix", {}).get("image", [""]):
                        text = step["run"].replace('"$IMAGE"', image)
                        yield f"{job.file.stem}:{job.name}:{number}{image}", text.splitlines()
    for name, job in read(GITLAB).items():
        if isinstance(job, dict) and name not in KEYWORDS:
            for key in ("before_script", "script", "after_script"):
                if key in job:
                    yield f"gitlab:{name}:{key}", job[key]


def commands(lines):
    """Return the words of each line that runs poolkit, make or a script of this project."""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if OWN.match(line):
            words = shlex.split(line, comments=True)
            ends = [n for n, word in enumerate(words) if word == "|" or re.match(r"\d?>", word)]
            yield words[: min(ends, default=len(words))]


SCRIPTS = [pytest.param(lines, id=name) for name, lines in scripts()]


@pytest.mark.parametrize("lines", SCRIPTS)
def test_every_command_exists(lines):
    """poolkit takes these commands and options; make has the target; the script is there."""
    for program, *arguments in commands(lines):
        if program == "poolkit":
            check_poolkit(arguments)
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif program.startswith("scripts/"):
            assert (ROOT / program).is_file()


def check_poolkit(arguments):
    """Parse a command line as click does; a variable stands for a word."""
    command = main
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, f"poolkit has no command {name}"
        command = command.commands[name]
    command.make_context(command.name, list(arguments), resilient_parsing=False)


def released(lines):
    """Return what a release does, in order: the words of each command of poolkit."""
    for program, command, *arguments in (each for each in commands(lines) if len(each) > 1):
        if program == "poolkit":
            words = [re.sub(r"\$\w+", "$", word) for word in arguments]
            yield command, *words


def test_gitlab_releases_as_github_does():
    """The same commands with the same options, in the same order."""
    (job,) = read(INFRA / "github/release-environment.yml")["jobs"].values()
    github = [
        command for step in job["steps"] for command in released(step.get("run", "").splitlines())
    ]
    jobs = read(GITLAB)
    release = [*jobs[".release"]["script"], *jobs[".release"]["after_script"]]
    assert list(released(release)) == github


@pytest.mark.parametrize("lines", SCRIPTS)
def test_a_deployment_goes_to_the_environment_of_its_job(lines):
    """No script names an environment that another job's approval protects."""
    for program, *arguments in commands(lines):
        if program == "poolkit" and "--environment" in arguments and "--plan-only" not in arguments:
            named = arguments[arguments.index("--environment") + 1]
            assert named.startswith("$") or arguments[0] == "budget"
