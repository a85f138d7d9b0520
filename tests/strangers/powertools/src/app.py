import os

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from sqlalchemy import URL, create_engine, text

logger = Logger(service="todos")
app = APIGatewayRestResolver()
engine = create_engine(
    URL.create(
        "postgresql+psycopg2",
        host=os.environ["DATABASE_HOST"],
        port=int(os.environ.get("DATABASE_PORT", "5432")),
        username=os.environ.get("DATABASE_USER", "todos"),
        password=os.environ.get("DATABASE_PASSWORD"),
        database=os.environ.get("DATABASE_NAME", "todos"),
    ),
    pool_size=1,
    max_overflow=0,
)


@app.get("/todos")
def todos():
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, title FROM todo ORDER BY id DESC LIMIT 20"))
        return [dict(row._mapping) for row in rows]


@app.get("/todos/<todo_id>")
def todo(todo_id: str):
    with engine.connect() as connection:
        query = text("SELECT id, title FROM todo WHERE id = :id")
        row = connection.execute(query, {"id": int(todo_id)}).first()
    if row is None:
        raise NotFoundError(todo_id)
    return dict(row._mapping)


@app.post("/todos")
def create_todo():
    with engine.begin() as connection:
        query = text("INSERT INTO todo (title) VALUES (:title) RETURNING id")
        return {"id": connection.execute(query, app.current_event.json_body).scalar_one()}, 201


@logger.inject_lambda_context
def lambda_handler(event: dict, context) -> dict:
    return app.resolve(event, context)
