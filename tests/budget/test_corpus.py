"""The corpus: small deployments with answers that were computed by hand (corpus/README.md)."""

import json
import tomllib
from pathlib import Path

import pytest
from poolkit_command import run_here, run_process
from programs import needs_kubectl

CORPUS = Path(__file__).with_name("corpus")
FOLDERS = sorted(answer.parent for answer in CORPUS.glob("*/answer.toml"))
STATUS = {"fits": 0, "does not fit": 1, "refused": 2, "cannot be shown to fit": 3}
STATUS["nothing to count"] = 3
KEYS = {"why", "verdict", "paths", "options", "needed", "ceilings", "through", "poolers"}
KEYS |= {"databases", "verdicts", "not_counted", "named", "wrong_today"}
AS_A_PROCESS = ("compose-depends-on", "cloudformation-nested-stacks", "folder-with-broken-files")


def answer_of(folder):
    answer = tomllib.loads((folder / "answer.toml").read_text())
    assert not answer.keys() - KEYS, answer.keys() - KEYS
    return answer


def command(answer, *, is_reversed=False):
    paths = answer.get("paths", ["."])
    return ["budget", *(reversed(paths) if is_reversed else paths), *answer.get("options", ())]


def cases():
    """Return each folder, and once more with its files in the other order if there are several."""
    found = []
    for folder in FOLDERS:
        orders = [False, True] if len(answer_of(folder).get("paths", ())) > 1 else [False]
        found += [case(folder, is_reversed=is_reversed) for is_reversed in orders]
    return found


def case(folder, *, is_reversed=False):
    fault = answer_of(folder).get("wrong_today")
    marks = [pytest.mark.xfail(reason=fault, strict=True)] if fault else []
    if any(folder.rglob("kustomization.yaml")) or any(folder.rglob("Chart.yaml")):
        marks.append(pytest.mark.process)
    if any(folder.rglob("kustomization.yaml")):
        marks.append(needs_kubectl)
    return pytest.param(
        folder, is_reversed, id=folder.name + "-reversed" * is_reversed, marks=marks
    )


@pytest.mark.parametrize(("folder", "is_reversed"), cases())
def test_the_answer_is_the_one_computed_by_hand(folder, is_reversed):
    """Every deployment of the corpus has the verdict, ceilings and limits of its answer.toml."""
    answer = answer_of(folder)
    words = command(answer, is_reversed=is_reversed)
    check(answer, run_here(*words, "--json", cwd=folder))


def check(answer, finished):
    """Compare what the command printed with an answer, key by key."""
    output = finished.stdout + finished.stderr
    assert finished.returncode == STATUS[answer["verdict"]], output
    for text in answer.get("named", ()):
        assert text in output, output
    if answer["verdict"] == "refused":
        return
    printed = json.loads(finished.stdout)
    assert (printed["verdict"], printed["exit_status"]) == (answer["verdict"], finished.returncode)
    budgets = {each["name"]: each for each in printed["databases"]}
    services = {each["name"]: each for found in budgets.values() for each in found["services"]}
    assert_same(answer.get("ceilings", {}), services)
    through = {name: each["through"] for name, each in services.items() if each["through"]}
    assert through == answer.get("through", {})
    poolers = {each["name"]: each for found in budgets.values() for each in found["poolers"]}
    assert_same(answer.get("poolers", {}), poolers)
    assert set(answer.get("not_counted", ())) <= {each["name"] for each in printed["not_counted"]}
    for name, expected in answer.get("databases", {}).items():
        limit = budgets[name]["max_connections"]["value"]
        if isinstance(expected, list):
            lowest, highest = expected
            assert lowest <= limit <= highest
        else:
            assert ("?" if limit is None else limit) == expected
    verdicts, needed = answer.get("verdicts", {}), answer.get("needed", {})
    assert {name: budgets[name]["verdict"] for name in verdicts} == verdicts
    if isinstance(needed, int):
        needed = dict.fromkeys(budgets, needed)
    assert {name: budgets[name]["needed"] for name in needed} == needed


def assert_same(expected, found):
    """Compare ceilings by name; "?" is unknown, and "any" leaves the number open."""
    ceilings = {
        name: "?" if each["ceiling"] is None else each["ceiling"] for name, each in found.items()
    }
    ceilings |= {name: "any" for name in found if expected.get(name) == "any"}
    assert ceilings == expected


@pytest.mark.process
@pytest.mark.parametrize(("folder", "is_reversed"), [case(CORPUS / name) for name in AS_A_PROCESS])
def test_a_process_of_its_own_gives_the_same_answer(folder, is_reversed):
    """The installed command prints what the tests see in their own process."""
    answer = answer_of(folder)
    words = command(answer, is_reversed=is_reversed)
    check(answer, run_process(*words, "--json", cwd=folder))
