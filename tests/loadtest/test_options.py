"""poolkit's options beside those of Locust and of a locustfile."""

import json

import pytest
from processes import run_python

pytestmark = pytest.mark.process

OWN = """
from locust import events

def add(parser, **_):
    parser.add_argument("--target", default="mine", help="of the locustfile")

"""
REGISTER = "from poolkit import loadtest; loadtest.register()\n"
LISTEN = "events.init_command_line_parser.add_listener(add)\n"
PARSE = """
import json
from locust.argument_parser import get_parser
print(json.dumps(vars(get_parser().parse_args())))
"""
PLAIN, BEFORE, AFTER = REGISTER, OWN + LISTEN + REGISTER, OWN + REGISTER + LISTEN


def parsed(folder, code, *arguments, **environ):
    """Return the options as Locust parses them; a configuration file may be in the folder."""
    done = run_python("-c", code + PARSE, *arguments, cwd=folder, environ=environ, clean=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("code", [BEFORE, AFTER])
def test_an_option_of_the_locustfile_stays_its_own(tmp_path, code):
    """Whichever of the two listeners Locust calls first."""
    found = parsed(tmp_path, code, "--target", "a", "--poolkit-target", "b", "--arrival-rate", "5")
    assert (found["target"], found["poolkit_target"]) == ("a", "b")
    assert found["poolkit_arrival_rate"] == "5"


def test_the_short_names_are_aliases_where_they_are_free(tmp_path):
    """A locustfile without options of its own keeps its command lines."""
    given = ("--target", "web", "--arrival-rate=5", "--max-users=7")
    found = parsed(tmp_path, PLAIN, *given, "--threshold", "http.p95 < 9")
    assert (found["poolkit_target"], found["poolkit_max_users"]) == ("web", 7)
    assert found["poolkit_threshold"] == ["http.p95 < 9"]
    assert "target" not in found


def test_variables_and_configuration_files_set_the_options(tmp_path):
    """As every option of Locust; DATABASE_URL counts where the longer name is not set."""
    (tmp_path / "locust.conf").write_text("poolkit-arrivals = poisson\nmax-users = 9\n")
    found = parsed(
        tmp_path, PLAIN, LOCUST_POOLKIT_ARRIVAL_RATE="20", DATABASE_URL="postgresql://a/b"
    )
    assert (found["poolkit_arrival_rate"], found["poolkit_arrivals"]) == ("20", "poisson")
    assert (found["poolkit_max_users"], found["poolkit_database_url"]) == (9, "postgresql://a/b")
    both = {"DATABASE_URL": "postgresql://a/b", "LOCUST_POOLKIT_DATABASE_URL": "postgresql://c/d"}
    (tmp_path / "locust.conf").unlink()
    (tmp_path / "pyproject.toml").write_text('[tool.locust]\npoolkit-arrival-rate = "30"\n')
    found = parsed(tmp_path, PLAIN, **both)
    assert (found["poolkit_arrival_rate"], found["poolkit_database_url"]) == (
        "30",
        "postgresql://c/d",
    )


def test_the_help_lists_the_options_and_their_variables(tmp_path):
    """With those of the locustfile, which `locust --help` lacks: it does not read the file."""
    done = run_python("-c", AFTER + PARSE, "--poolkit-help", cwd=tmp_path, clean=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "--poolkit-arrival-rate <rate>, --arrival-rate <rate>" in text
    assert "[LOCUST_POOLKIT_ARRIVAL_RATE]" in text
    assert "--poolkit-target <name> The target under load" in text
    assert "--target TARGET of the locustfile" in text
