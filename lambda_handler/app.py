"""The HTTP function: `lambda_handler.app.handler`."""

from poolkit.cold_start import without_garbage_collection

with without_garbage_collection():
    from http import HTTPStatus
    from typing import Any

    from aws_lambda_powertools import Logger
    from aws_lambda_powertools.event_handler import Response

    from articles import service
    from articles.errors import NotFound, PreconditionFailed, StaleVersion
    from articles.models import Article
    from lambda_handler import schemas
    from lambda_handler.schemas import ArticleId, DocumentId, output
    from poolkit.powertools import ExecutionEnvironment, Resolver, instrument, problem_response
    from poolkit.powertools.schemas import parse_body, parse_parameter, to_json
    from poolkit.preconditions import matches
    from poolkit.problems import Problem, status_problem

JSON = "application/json"

logger = Logger(utc=True)
environment = ExecutionEnvironment.open()
app = Resolver(logger=logger, serializer=to_json)


@app.get("/articles")
def list_articles() -> schemas.Page:
    """List articles, newest first."""
    query = {name: values[-1] for name, values in app.query.items()}
    limit = parse_parameter("limit", query.get("limit", "20"), schemas.Limit)
    before = parse_parameter("before", query["before"], ArticleId) if "before" in query else None
    with environment.read_session() as session:
        # One article more than the page holds shows whether there is another page.
        found = service.list_articles(session, limit=limit + 1, before=before)
    items = [output(article, schemas.ArticleSummary) for article in found[:limit]]
    return schemas.Page(items, items[-1].id if len(found) > limit else None)


@app.post("/articles")
def create_article() -> Response[Any]:
    """Create an article."""
    new = parse_body(app.json_body, schemas.NewArticle)
    with environment.session() as session:
        article = service.create_article(session, title=new.title, body=new.body)
        return _article(article, HTTPStatus.CREATED, Location=f"/articles/{article.id}")


@app.get("/articles/<article_id>")
def get_article(article_id: str) -> Response[Any]:
    """Read an article."""
    key = parse_parameter("article_id", article_id, ArticleId)
    with environment.read_session() as session:
        return _article(service.get_article(session, key))


@app.patch("/articles/<article_id>")
def update_article(article_id: str) -> Response[Any]:
    """Change an article, if it still has the version that the change was made for."""
    key = parse_parameter("article_id", article_id, ArticleId)
    change = parse_body(app.json_body, schemas.ArticleUpdate)
    if_match = app.header("if-match")

    def precondition(version: int) -> bool:
        return if_match is None or matches(if_match, f'"{version}"')

    with environment.session() as session:
        article = service.update_article(
            session,
            key,
            version=change.version,
            title=change.title,
            body=change.body,
            precondition=precondition,
        )
        return _article(article)


@app.post("/documents")
def ingest_document() -> Response[Any]:
    """Ingest a document; a second time it changes nothing."""
    new = parse_body(app.json_body, schemas.NewDocument)
    with environment.session() as session:
        document, is_new = service.ingest_document(
            session, id=new.id, title=new.title, text=new.text
        )
        content = output(document, schemas.DocumentOut)
    status = HTTPStatus.CREATED if is_new else HTTPStatus.OK
    return Response(status, JSON, content, {"Location": f"/documents/{new.id}"})


@app.get("/documents/<document_id>")
def get_document(document_id: str) -> schemas.DocumentWithChunks:
    """Read a document with its chunks."""
    key = parse_parameter("document_id", document_id, DocumentId)
    with environment.read_session() as session:
        return output(service.get_document(session, key), schemas.DocumentWithChunks)


def _article(article: Article, status: int = HTTPStatus.OK, **headers: str) -> Response[Any]:
    content = output(article, schemas.ArticleOut)
    return Response(status, JSON, content, {"ETag": f'"{content.version}"', **headers})


@app.exception_handler(NotFound)
def not_found(error: NotFound) -> Response[str]:
    """Answer 404."""
    return problem_response(status_problem(HTTPStatus.NOT_FOUND, str(error)))


@app.exception_handler(PreconditionFailed)
def precondition_failed(error: PreconditionFailed) -> Response[str]:
    """Answer 412 with the current version."""
    problem = status_problem(HTTPStatus.PRECONDITION_FAILED, str(error))
    return problem_response(problem._replace(extensions={"current_version": error.current}))


@app.exception_handler(StaleVersion)
def stale_version(error: StaleVersion) -> Response[str]:
    """Answer 409 with the current version, which the client merges its change with."""
    return problem_response(
        Problem(
            HTTPStatus.CONFLICT,
            "Stale version",
            str(error),
            "/problems/stale-version",
            extensions={"current_version": error.current},
        )
    )


@instrument(environment, logger)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer a request of an HTTP API, a REST API, a function URL or a load balancer."""
    return app.resolve(event, context)
