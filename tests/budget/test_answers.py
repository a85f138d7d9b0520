"""The project's answers to what files do not show."""

import pytest
from poolkit_command import refused

COMPOSE = """
    services:
      db: {image: "postgres:17"}
      web:
        image: example.org/web
        environment: {DATABASE_URL: postgresql://app@db/app}
      mail:
        image: example.org/mail
        environment: {DATABASE_URL: postgresql://app@db/app}
"""


@pytest.fixture
def shop(folder):
    folder.write("compose.yaml", COMPOSE)
    return folder


def answer(shop, text):
    shop.write("pyproject.toml", text)
    return shop.run("compose.yaml")


def test_answers_of_the_project_count_as_options(shop):
    """They need no repetition on the command line; an option goes before them."""
    answers = (
        '[tool.poolkit.budget]\nignore = ["mail"]\n[tool.poolkit.budget.services]\nweb = "5+0x2"'
    )
    found = answer(shop, answers)
    assert "Fits: 14 of 97 connections" in found.stdout
    assert "[tool.poolkit.budget] services.web" in found.stdout
    assert "Fits: 7 of 97" in shop.run("compose.yaml", "--service", "web=3+0x1").stdout
    assert "of 197" in answer(shop, f"{answers}\n[tool.poolkit.budget.databases]\ndb = 200").stdout


def test_an_open_answer_leaves_the_number_unknown(shop):
    """The entry is there to be filled in."""
    text = '[tool.poolkit.budget]\nignore = ["mail"]\n[tool.poolkit.budget.services]\nweb = "?"\n'
    found = answer(shop, text)
    assert found.returncode == 3
    assert "Cannot be shown to fit" in found.stdout


def test_an_answer_may_be_about_something_that_these_files_lack(shop):
    """One project has several deployments."""
    text = '[tool.poolkit.budget]\nignore = ["mail", "gone"]\n[tool.poolkit.budget.services]\n'
    assert answer(shop, f'{text}web = "1+0x1"\nother = "9+0x9@9"').returncode == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("services = 3", "services"),
        ("services.web = 5", "services.web"),
        ("services.web = '5'", "5+10x4@20"),
        ("databases.db = '200'", "databases.db"),
        ("databases.db = true", "databases.db"),
        ("ignore = 'web'", "ignore"),
        ("servces.web = '5+10'", "servces"),
    ],
)
def test_a_wrong_answer_is_one_line(shop, text, named):
    """It names the file and the entry."""
    refused(answer(shop, f"[tool.poolkit.budget]\n{text}"), named)
