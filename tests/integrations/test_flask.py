"""Flask and Flask-SQLAlchemy: engines from presets, 503 for a database that is full or away."""

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy as PlainSQLAlchemy
from psycopg2 import sql
from sqlalchemy import exc, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import QueuePool, StaticPool

from poolkit import ConfigurationError, preset
from poolkit.flask import Poolkit
from poolkit.flask_sqlalchemy import SQLAlchemy


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture(autouse=True)
def variables(database, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", database.url(driver=""))
    monkeypatch.setenv("POOLKIT_ECHO", "false")
    # Enough for a busy machine. A refusal is not waited out, which would take as long.
    monkeypatch.setenv("POOLKIT_CONNECT_TIMEOUT", "60")
    monkeypatch.setenv("POOLKIT_RETRY_CONNECT", "false")


def application(kit, **options):
    """An application as Flask's own documents show it."""
    app = Flask(__name__)
    kit.init_app(app, **options)

    @app.post("/notes/<text>")
    def add(text):
        with kit.unit_of_work() as session:
            session.add(Note(text=text))
            if text == "bad":
                raise ValueError("no such note")
        return "", 201

    @app.get("/notes")
    def notes():
        with kit.unit_of_work() as session:
            return [note.text for note in session.scalars(select(Note))]

    @app.get("/broken")
    def broken():
        with kit.unit_of_work() as session:
            return session.scalar(text("SELECT nothing FROM nowhere"))

    return app


@pytest.fixture
def kit():
    return Poolkit()


@pytest.fixture
def app(kit):
    app = application(kit)
    with app.app_context():
        Base.metadata.create_all(kit.engine)
        yield app
        kit.engine.dispose()


def full(database):
    """End the application's connections, and let the database refuse every new one."""
    limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0")
    database.execute(limit.format(sql.Identifier(database.name)))
    database.terminate_backends()


def problem_of(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    document = answer.get_json()
    assert document["status"] == status
    return document


# -- Flask ----------------------------------------------------------------------------------


def test_a_unit_of_work_commits_and_rolls_back(app):
    """On success the note is there, after an error it is not."""
    client = app.test_client()
    assert client.post("/notes/good").status_code == 201
    assert client.post("/notes/bad").status_code == 500
    assert client.get("/notes").get_json() == ["good"]


def test_the_engine_is_that_of_the_preset(database, app, kit):
    """Pool, name and checks are those of web in the environment of the variables."""
    with kit.engine.connect():
        assert len(database.backends("web:")) == 1
    assert kit.engine.pool.size() == preset("web", "dev").pool_size


def test_a_full_pool_is_503_with_retry_after(kit, monkeypatch):
    """The client is told when to come back, and nothing of the inside."""
    small = {"POOL_SIZE": "1", "MAX_OVERFLOW": "0", "POOL_TIMEOUT": "0.1"}
    for name, value in small.items():
        monkeypatch.setenv(f"POOLKIT_{name}", value)
    app = application(kit)
    with app.app_context(), kit.engine.connect():
        answer = app.test_client().get("/notes")
    document = problem_of(answer, 503)
    assert answer.headers["Retry-After"] == "1"
    assert "every database connection is in use" in document["detail"]
    with app.app_context():
        kit.engine.dispose()


def test_a_database_that_is_full_is_503_and_not_ready(database, app):
    """Neither host nor role is in the answer; the log has them."""
    full(database)
    for path in ("/notes", "/readyz"):
        answer = app.test_client().get(path)
        problem_of(answer, 503)
        assert answer.headers["Retry-After"] == "5"
        assert "127.0.0.1" not in answer.text


def test_a_server_that_was_stopped_is_503_until_it_is_back(new_postgres, kit, monkeypatch):
    """A connection that broke in the pool is replaced as soon as there is a server."""
    with new_postgres() as server:
        monkeypatch.setenv("DATABASE_URL", server.url())
        client = application(kit).test_client()
        assert client.get("/readyz").status_code == 200
        server.stop()
        problem_of(client.get("/readyz"), 503)
        server.start()
        assert client.get("/readyz").status_code == 200
        with client.application.app_context():
            kit.engine.dispose()


def test_a_mistake_in_a_statement_is_flasks_500(app):
    """Only temporary failures are 503."""
    assert app.test_client().get("/broken").status_code == 500
    app.testing = True
    with pytest.raises(exc.ProgrammingError):
        app.test_client().get("/broken")


def test_a_page_of_the_sites_own_wins(database, app):
    """`@app.errorhandler(503)` renders it; Retry-After is added."""
    app.register_error_handler(503, lambda error: ("<p>back soon", 503))
    full(database)
    answer = app.test_client().get("/notes")
    assert (answer.status_code, answer.text) == (503, "<p>back soon")
    assert answer.headers["Retry-After"] == "5"


def test_every_error_can_be_a_problem_document(database, kit):
    """404 and 405 keep their headers, and 500 keeps the error's text to itself."""
    app = application(kit, every_error=True)
    client = app.test_client()
    problem_of(client.get("/nothing"), 404)
    answer = client.delete("/notes")
    problem_of(answer, 405)
    assert "GET" in answer.headers["Allow"]
    assert "nowhere" not in problem_of(client.get("/broken"), 500)["detail"]
    full(database)
    answer = client.get("/notes")
    problem_of(answer, 503)
    assert answer.headers["Retry-After"] == "5"


def test_metrics_show_the_pool(app):
    """The counters that `poolkit compare` reads are there."""
    client = app.test_client()
    client.get("/notes")
    answer = client.get("/metrics")
    assert 'poolkit_pool_opened_total{target="web"} 1.0' in answer.text
    assert answer.content_type.startswith("text/plain")


def test_two_applications_have_engines_of_their_own(kit):
    """As any Flask extension, the object holds no state of an application."""
    engines = []
    for app in (application(kit), application(kit, ready=None, metrics=None)):
        with app.app_context():
            engines.append(kit.engine)
    assert engines[0] is not engines[1]
    assert app.test_client().get("/readyz").status_code == 404


def test_a_missing_variable_stops_the_start(monkeypatch, kit):
    """The message names it."""
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        kit.init_app(Flask(__name__))


# -- Flask-SQLAlchemy -----------------------------------------------------------------------


def site(kit, db, **config):
    app = Flask(__name__)
    app.config.update(config)
    db.init_app(app)
    kit.init_app(app, db)

    @app.get("/notes")
    def notes():
        return [note.text for note in db.session.scalars(select(Note))]

    return app


def test_each_bind_has_the_engine_of_its_preset(database, kit):
    """The default bind's comes from the variables, another one's from `presets`."""
    small = preset("script").replace(pool="queue", pool_size=3)
    db = SQLAlchemy(model_class=Base, presets={"reports": small})
    app = site(
        kit,
        db,
        SQLALCHEMY_DATABASE_URI=database.url(),
        SQLALCHEMY_BINDS={"reports": database.url("psycopg")},
    )
    with app.app_context():
        assert [engine.pool.size() for engine in (db.engine, db.engines["reports"])] == [5, 3]
        assert db.engines["reports"].dialect.driver == "psycopg"
        Base.metadata.create_all(db.engine)
        with db.engine.connect(), db.engines["reports"].connect():
            assert len(database.backends("web:")) == 1
            assert len(database.backends("script:")) == 1
    client = app.test_client()
    assert client.get("/readyz").status_code == 200
    assert 'opened_total{target="reports"} 1.0' in client.get("/metrics").text
    assert client.get("/notes").get_json() == []
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_the_database_of_the_variables_is_the_default(database, kit):
    """Without SQLALCHEMY_DATABASE_URI, DATABASE_URL is the database."""
    db = SQLAlchemy(model_class=Base)
    app = site(kit, db)
    with app.app_context(), db.engine.connect():
        assert len(database.backends("web:")) == 1
        db.engine.dispose()


def test_options_of_the_application_win(database, kit):
    """SQLALCHEMY_ENGINE_OPTIONS changes single settings of the preset."""
    db = SQLAlchemy(model_class=Base)
    app = site(
        kit,
        db,
        SQLALCHEMY_DATABASE_URI=database.url(),
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2, "connect_args": {"application_name": "shop"}},
    )
    with app.app_context(), db.engine.connect():
        assert db.engine.pool.size() == 2
        assert len(database.backends("shop")) == 1
        db.engine.dispose()


def test_sqlite_in_tests_stays_as_it_is(kit):
    """The URL that test suites set later gets Flask-SQLAlchemy's own engine."""
    db = SQLAlchemy(model_class=Base)
    app = site(kit, db, SQLALCHEMY_DATABASE_URI="sqlite://")
    with app.app_context():
        assert type(db.engine.pool) is StaticPool
        Base.metadata.create_all(db.engine)
    assert app.test_client().get("/notes").get_json() == []
    assert app.test_client().get("/readyz").status_code == 200
    with app.app_context():
        db.engine.dispose()


def test_a_plain_extension_is_attached(database, kit):
    """Without engines from presets there are name, checks and metrics all the same."""
    db = PlainSQLAlchemy(model_class=Base)
    app = site(kit, db, SQLALCHEMY_DATABASE_URI=database.url())
    with app.app_context():
        assert isinstance(db.engine.pool, QueuePool)
        Base.metadata.create_all(db.engine)
        with db.engine.connect():
            assert len(database.backends("web:")) == 1
    client = app.test_client()
    assert 'opened_total{target="web"} 1.0' in client.get("/metrics").text
    full(database)
    problem_of(client.get("/notes"), 503)
    with app.app_context():
        db.engine.dispose()
