"""The web services beside the behaviour suite: their OpenAPI document, and their start."""

import jsonschema
import pytest

from poolkit.problems import MEDIA_TYPE
from webapp import app as sync_service
from webapp import async_app as async_service


def test_both_services_document_the_same_api():
    """Synchronous or not, the OpenAPI document is one."""
    assert sync_service.app.openapi() == async_service.app.openapi()


def test_every_operation_documents_its_problems():
    """Each may answer 503, and an endpoint with input 422, as problem documents."""
    paths = sync_service.app.openapi()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            responses = operation["responses"]
            if path in {"/healthz", "/metrics"}:
                continue
            schema = responses["503"]["content"][MEDIA_TYPE]["schema"]
            jsonschema.Draft202012Validator.check_schema(schema)
            assert path == "/readyz" or MEDIA_TYPE in responses["422"]["content"]


@pytest.mark.process
def test_a_service_is_ready_and_shows_its_pool(serve, target, migrated_database):
    """As a container runs it: uvicorn, the environment's variables, and a database."""
    with serve(migrated_database.url(driver="")) as served:
        assert served.get("/readyz") == 200
        assert served.request("POST", "/articles", {"title": "Title", "body": ""})[0] == 201
        assert served.get("/articles/1") == 200
        assert served.metric("opened_total") == 1
        (backend,) = migrated_database.backends()
        assert backend["application_name"].startswith(f"{target}:")
