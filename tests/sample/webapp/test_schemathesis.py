"""Requests made from the OpenAPI document, valid and not, and the answers compared with it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import run

pytestmark = [pytest.mark.process, pytest.mark.slow]

HERE = Path(__file__).parent
# Making texts of up to 200,000 characters that match a pattern takes minutes. The behaviour suite
# sends them.
LONGEST = 1_000


def without_long_texts(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            name: without_long_texts(part)
            for name, part in schema.items()
            if name != "maxLength" or part <= LONGEST
        }
    return [without_long_texts(each) for each in schema] if isinstance(schema, list) else schema


def test_the_service_answers_as_its_openapi_document_says(serve, migrated_database, tmp_path):
    """All of schemathesis' checks, with a fixed seed: statuses, schemas, headers, methods, states."""
    with serve(migrated_database.url(driver="")) as served:
        document = without_long_texts(json.loads(served.request("GET", "/openapi.json")[2]))
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        checked = run(
            *(sys.executable, "-m", "schemathesis.cli", "--no-color"),
            *("--config-file", HERE / "schemathesis.toml", "run", tmp_path / "openapi.json"),
            *("--url", served.address, "--checks", "all", "--seed", "20261127"),
            *("--max-examples", "15", "--no-shrink", "--continue-on-failure"),
            cwd=tmp_path,
            timeout_s=270,
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert served.get("/healthz") == 200
        assert "Traceback" not in served.process.text
