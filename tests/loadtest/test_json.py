"""`--json`: Locust's array on the standard output, and the kit's document beside it."""

import json

import pytest
from processes import run_python


@pytest.mark.slow
@pytest.mark.usefixtures("locust")
def test_the_array_stays_as_it_is_and_the_document_is_a_line_of_its_own(server, database, tmp_path):
    """The one on the standard output, the other behind the tables on the standard error."""
    ended = run_python(
        *("-m", "locust", "-f", "visitors.py", "--host", server.url),
        *("--headless", "--run-time", "3s", "--json", "--threshold", "http.p95 < 60s"),
        cwd=tmp_path,
        environ={"DATABASE_URL": database.monitor_url(""), "PYTHONIOENCODING": "utf-8"},
    )
    assert ended.returncode == 0, ended.stderr
    (of_locust,) = json.loads(ended.stdout)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("{")]
    document = json.loads(line)
    assert document["latency_ms"][-1]["requests"] == of_locust["num_requests"] > 0
    assert document["series"]["opened_per_s"]
    assert document["partial"] is False
    before = ended.stderr[: ended.stderr.index(line)]
    assert "Latency in ms, to three digits" in before
    assert "✓ http.p95 is " in before
