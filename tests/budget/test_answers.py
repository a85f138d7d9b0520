"""The project's answers to what files do not show."""

import tomllib

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


# -- --answer -------------------------------------------------------------------------------


def write(shop, *options):
    """Run with --answer, and return the project's entries."""
    answer = shop.run("compose.yaml", "--answer", *options)
    file = shop.path / "pyproject.toml"
    return answer, tomllib.loads(file.read_text())["tool"]["poolkit"]["budget"]


def test_answers_of_the_command_line_are_written(shop):
    """The next run needs no options, and has the same verdict."""
    first, found = write(shop, "--service", "web=5+0x2", "--ignore", "mail")
    assert found == {"ignore": ["mail"], "services": {"web": "5+0x2"}}
    assert first.returncode == shop.run("compose.yaml").returncode == 0


def test_an_unknown_number_gets_an_open_entry(shop):
    """Its comment has the form of the answer, and the reason."""
    answer, found = write(shop, "--ignore", "mail")
    assert (answer.returncode, found["services"]) == (3, {"web": "?"})
    (line,) = [
        line
        for line in (shop.path / "pyproject.toml").read_text().splitlines()
        if line.startswith("web")
    ]
    assert "POOL+OVERFLOW" in line.partition("#")[2]


def test_writing_twice_changes_nothing_more(shop):
    """An answer is never replaced by an open entry."""
    write(shop, "--service", "web=5+0x2")
    text = (shop.path / "pyproject.toml").read_text()
    assert 'mail = "?"' in text
    write(shop)
    assert (shop.path / "pyproject.toml").read_text() == text


def test_an_open_entry_disappears_with_its_answer(shop):
    """The option of a later run takes its place, or the service is ignored."""
    write(shop)
    _, found = write(shop, "--service", "web=5+0x2", "--ignore", "mail")
    assert found["services"] == {"web": "5+0x2"}


PYPROJECT = """\
# The project.
[tool.black]  # formats
line-length = 88

[project]
name = 'shop'

[tool.poolkit.budget.services]
mail = '1+0x1'   # by hand
old = "9+9"
"""


def test_the_rest_of_the_file_stays_as_it_is(shop):
    """Comments, order and quotes are kept; a service that is gone is named."""
    shop.write("pyproject.toml", PYPROJECT)
    answer, found = write(shop, "--service", "web=5+0x2", "--max-connections", "300")
    text = (shop.path / "pyproject.toml").read_text()
    before = [line for line in PYPROJECT.splitlines() if line]
    assert [line for line in text.splitlines() if line in before] == before
    assert found["services"] == {"mail": "1+0x1", "old": "9+9", "web": "5+0x2"}
    assert found["databases"] == {"db": 300}
    assert "old" in answer.stdout


def test_poolkit_toml_has_the_same_tables_without_the_prefix(shop):
    """The answers go where the project's other settings are."""
    shop.write("poolkit.toml", "python = 'python3'\n")
    answer = shop.run("compose.yaml", "--answer", "--service", "web=5+0x2", "--ignore", "mail")
    found = tomllib.loads((shop.path / "poolkit.toml").read_text())
    assert found["budget"]["services"] == {"web": "5+0x2"}
    assert (answer.returncode, (shop.path / "pyproject.toml").exists()) == (0, False)


def test_a_name_with_odd_characters_is_quoted(shop):
    """The file stays TOML, and its entry is read again."""
    shop.write(
        "compose.yaml", COMPOSE.replace("web:", '"web\\n[x]":').replace("mail:", '"a.b \\"c\\"":')
    )
    _, found = write(shop)
    assert set(found["services"]) == {"web\n[x]", 'a.b "c"'}


def test_a_file_that_cannot_take_the_answers_is_named(shop):
    """An inline table has no room for tables; nothing is written."""
    shop.write("pyproject.toml", "[tool]\npoolkit = {}\n")
    refused(shop.run("compose.yaml", "--answer"), "pyproject.toml")


def test_the_class_of_a_server_is_reported_as_an_entry(postgres, folder):
    """`--report-class` prints the class of the files with the number that the server reports."""
    folder.write(
        "app.yaml",
        """
        Resources:
          Db: {Type: AWS::RDS::DBInstance, Properties: {DBInstanceClass: db.t4g.small}}
        """,
    )
    url = postgres.admin_url("postgres", "psycopg2")
    entries = tomllib.loads(folder.run("app.yaml", "--report-class", "--database-url", url).stdout)
    assert entries["tool"]["poolkit"]["budget"]["classes"] == {"db.t4g.small": 100}
    named = ("--instance-class", "db.r9g.large", "--database-url", url)
    assert '"db.r9g.large" = 100' in folder.run("app.yaml", "--report-class", *named).stdout
    refused(folder.run("app.yaml", "--report-class"), "--database-url")
