"""Verdicts on a terminal, in JUnit's files and as GitHub's annotations."""

from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.thresholds import (
    Threshold,
    check_all,
    github_annotations,
    junit,
    lines,
    plain_lines,
    takes_marks,
)

TEXTS = ["http.p50 < 100", "http.p95 < 200", "http.errors < 1%", "lambda.cold_starts < 3"]
FIGURES = {"http.p50": 50.0, "http.p95": 243.0}


def verdicts(target="web", load=""):
    thresholds = [Threshold.parse(text) for text in TEXTS]
    return check_all(thresholds, target, FIGURES, ["lambda.cold_starts"], load=load)


# -- terminal -------------------------------------------------------------------------------


def test_a_tick_or_a_cross_a_line():
    """What is not known has a cross, what does not apply a dash."""
    assert plain_lines(verdicts()) == [
        "✓ web: http.p50 is 50 ms, wanted < 100 ms",
        "✗ web: http.p95 is 243 ms, wanted < 200 ms",
        "✗ web: http.errors is not known, wanted < 1%",
        "- web: lambda.cold_starts does not apply, wanted < 3",
    ]
    assert [line.plain for line in lines(verdicts())] == plain_lines(verdicts())


def test_a_terminal_without_ticks_has_words():
    """Windows' older code pages have neither tick nor cross."""
    assert takes_marks("utf-8")
    assert not takes_marks("cp1252")
    assert not takes_marks(None)
    assert not takes_marks("no such encoding")
    said = "\n".join(plain_lines(verdicts(), words=True))
    assert said.encode("ascii").startswith(b"ok web: http.p50 is 50 ms")
    assert "FAILED web: http.p95" in said
    assert "UNKNOWN web: http.errors" in said


def test_brackets_in_a_name_are_no_markup():
    """A load's words reach the terminal as they are."""
    (first, *_) = lines(verdicts(load="[red]5 users[/red]"))
    assert "[red]5 users[/red]" in first.plain


# -- JUnit ----------------------------------------------------------------------------------

ORDER = ["properties", "testcase", "system-out", "system-err"]
SUITE = {
    *("name", "package", "id", "tests", "failures", "errors", "skipped"),
    *("timestamp", "hostname", "time"),
}


def assert_shape(document):
    """Hold a document to what both published schemas of JUnit's files take."""
    root = ET.fromstring(document.encode())
    assert (root.tag, root.attrib) == ("testsuites", {})
    for number, suite in enumerate(root):
        assert suite.tag == "testsuite"
        assert set(suite.attrib) == SUITE
        assert suite.get("id") == str(number)
        assert suite.get("name")
        datetime.strptime(suite.get("timestamp"), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
        tags = [child.tag for child in suite]
        assert tags == sorted(tags, key=ORDER.index)
        assert {tag: tags.count(tag) for tag in ORDER if tag != "testcase"} == {
            tag: 1 for tag in ORDER if tag != "testcase"
        }
        assert all(set(p.attrib) == {"name", "value"} for p in suite.find("properties"))
        assert_cases(suite)
    return root


def assert_cases(suite):
    cases = suite.findall("testcase")
    counts = {"tests": len(cases)}
    for tag, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        counts[plural] = len(suite.findall(f"testcase/{tag}"))
    assert {name: int(suite.get(name)) for name in counts} == counts
    for case in cases:
        assert set(case.attrib) == {"name", "classname", "time"}
        assert len(case) <= 1
        for child in case:
            wanted = {"message"} if child.tag == "skipped" else {"message", "type"}
            assert set(child.attrib) == wanted


def test_a_suite_a_target_and_a_case_a_threshold():
    """Failed is a failure, not known an error, not applicable skipped."""
    when = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    document = junit(
        [*verdicts("web", "5 users"), *verdicts("lambda")], "load test", {"users": "5"}, when=when
    )
    root = assert_shape(document)
    assert [suite.get("name") for suite in root] == ["web", "lambda"]
    assert root[0].get("timestamp") == "2026-03-01T12:30:00"
    assert root[0].find("properties/property").attrib == {"name": "users", "value": "5"}
    found = [
        (case.get("classname"), case.get("name"), [child.tag for child in case])
        for case in root[0].findall("testcase")
    ]
    assert found == [
        ("load test.web", "http.p50 < 100 ms at 5 users", []),
        ("load test.web", "http.p95 < 200 ms at 5 users", ["failure"]),
        ("load test.web", "http.errors < 1% at 5 users", ["error"]),
        ("load test.web", "lambda.cold_starts < 3 at 5 users", ["skipped"]),
    ]
    message = root[0].find("testcase/failure").get("message")
    assert message == "web at 5 users: http.p95 is 243 ms, wanted < 200 ms"


def test_a_run_without_a_target_is_one_suite_of_its_own_name():
    """A plain load test has no name of a target."""
    root = assert_shape(junit(verdicts(""), "load test"))
    assert [suite.get("name") for suite in root] == ["load test"]


def test_no_threshold_is_an_empty_document():
    """A reader of the file finds nothing that failed."""
    assert len(assert_shape(junit([], "load test"))) == 0


@given(st.text(), st.text(), st.text(min_size=1))
def test_any_words_make_a_document_that_can_be_read(load, value, name):
    """Also what XML has no place for, in a file of any encoding; a property comes back."""
    document = junit(verdicts("web", load), name, {"key": value})
    root = assert_shape(document)
    document.encode("ascii")
    back = root.find("testsuite/properties/property").get("value")
    assert len(back) == len(value)
    assert all(a in (b, "\ufffd") for a, b in zip(back, value, strict=True))


# -- GitHub ---------------------------------------------------------------------------------


def test_an_error_for_each_that_is_not_ok():
    """With a title that names target and metric; what passed or does not apply says nothing."""
    failed, unknown = github_annotations(verdicts(load="5 users"))
    assert failed == (
        "::error title=Threshold failed%3A web at 5 users%3A http.p95::"
        "web at 5 users: http.p95 is 243 ms, wanted < 200 ms"
    )
    assert unknown == (
        "::error title=Threshold not known%3A web at 5 users%3A http.errors::"
        "web at 5 users: http.errors is not known, wanted < 1%25"
    )


def unescaped(text):
    for code, sign in (("%0A", "\n"), ("%0D", "\r"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, sign)
    return text


@given(st.text(alphabet=st.sampled_from(":,%\r\n =a;]"), max_size=12))
def test_an_annotation_is_one_line_that_reads_back(load):
    """Data have no line end, properties no colon and no comma; nothing is lost."""
    found = verdicts(load=load)
    for text, verdict in zip(github_annotations(found), found[1:3], strict=True):
        assert "\n" not in text
        assert "\r" not in text
        _, command, data = text.split("::", 2)
        assert command.startswith("error title=")
        assert "," not in command
        assert ":" not in command
        assert unescaped(command.removeprefix("error title=")).endswith(verdict.threshold.metric)
        assert unescaped(data) == verdict.message


@pytest.mark.parametrize("count", [10, 11, 25])
def test_more_than_github_shows_are_put_together(count):
    """Of a step GitHub shows ten errors, so none is lost behind the tenth."""
    thresholds = [Threshold.parse(f"http.p95 < {n}") for n in range(1, count + 1)]
    found = check_all(thresholds, "web", {"http.p95": 1000.0})
    said = github_annotations(found)
    assert len(said) == 10
    text = unescaped("\n".join(said))
    assert all(verdict.message in text for verdict in found)
