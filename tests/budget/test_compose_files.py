"""Compose files put together: anchors, `extends`, `include`, and an override file."""

import pytest

from poolkit.errors import TemplateError

BASE = """
    services:
      base:
        image: example.org/web
        command: gunicorn -w 4 app
        env_file: app.env
        environment: [POOLKIT_TARGET=web, POOLKIT_ENVIRONMENT=dev]
"""


@pytest.fixture
def base(folder):
    """A service in another folder, for others to extend."""
    folder.write("common/app.env", "POOLKIT_POOL_SIZE=7\n")
    return folder.write("common/base.yaml", BASE)


def test_a_service_that_extends_another_has_its_variables(folder, ceilings, base):
    """It has those of the other service, with their lines, and its own over them."""
    folder.write(
        "compose.yaml",
        """
        services:
          web:
            extends: {file: common/base.yaml, service: base}
            deploy: {replicas: 2}
          api:
            extends: web
            environment: {POOLKIT_MAX_OVERFLOW: "3"}
            command: [gunicorn, -w, "1", app]
        """,
    )
    budget = folder.budget("compose.yaml", max_connections=500)
    # 2 x 4 x (7 + 10), and 2 x 1 x (7 + 3).
    assert ceilings(budget) == {"web": 136, "api": 20}
    assert str(base) in budget.services[0].max_overflow.origin


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("{file: nowhere.yaml, service: base}", "nowhere.yaml does not exist"),
        ("{file: common/base.yaml, service: other}", "there is no service other to extend"),
        ("web", "service web extends itself"),
        ("[x]", "extends must name a service"),
    ],
)
def test_a_wrong_extends_is_named_with_its_line(folder, base, extends, message):
    """The message has the file and the line."""
    folder.write("compose.yaml", f"services:\n  web: {{image: x, extends: {extends}}}\n")
    with pytest.raises(TemplateError, match=message) as raised:
        folder.budget("compose.yaml", max_connections=500)
    assert ".yaml:" in str(raised.value)
    assert base.is_file()


def test_an_override_beside_the_main_file_is_laid_over_it(folder, ceilings):
    """As `docker compose up` does in that folder; naming the main file leaves it out."""
    variables = "{POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev}"
    main = f"services:\n  web: {{image: x, command: uvicorn a, environment: {variables}}}\n"
    folder.write("compose.yaml", main)
    override = "services:\n  web: {deploy: {replicas: 10}, environment: [POOLKIT_POOL_SIZE=1]}\n"
    file = folder.write("compose.override.yaml", override)
    budget = folder.budget(max_connections=500)
    assert ceilings(budget) == {"web": 110}
    assert budget.services[0].instances.origin == f"{file}:2"
    assert ceilings(folder.budget("compose.yaml", max_connections=500)) == {"web": 15}


def test_a_part_of_another_files_service_is_unknown(folder):
    """Which files `--file` lays over each other is unknown."""
    folder.write("compose.prod.yaml", "services:\n  web: {deploy: {replicas: 10}}\n")
    (gap, *_) = folder.budget(max_connections=500, services=()).gaps[::-1]
    assert "`docker compose config`" in gap.reason


def test_included_files_are_read_once(folder, ceilings):
    """Also if their folder is named."""
    variables = "{POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev}"
    folder.write(
        "compose.yaml", "include: [other/compose.yaml]\nservices: {db: {image: postgres}}\n"
    )
    folder.write(
        "other/compose.yaml", f"services:\n  web: {{image: x, environment: {variables}}}\n"
    )
    for paths in (("compose.yaml",), ()):
        assert ceilings(folder.budget(*paths)) == {"web": 15}


def test_anchors_are_followed(folder, ceilings):
    """A merge key takes the values of the anchor."""
    folder.write(
        "compose.yaml",
        """
        x-app: &app
          image: x
          command: gunicorn -w 2 app
          environment: &variables {POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev}
        services:
          web: {<<: *app, scale: 3}
          api: {<<: *app, environment: {<<: *variables, POOLKIT_POOL_SIZE: "1"}}
        """,
    )
    assert ceilings(folder.budget(max_connections=500)) == {"web": 90, "api": 22}
