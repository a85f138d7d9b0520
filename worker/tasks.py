"""The tasks: functions of the domain on a queue."""

from __future__ import annotations

from articles import service
from articles.schemas import NewDocument
from poolkit.celery import DeliveredTask
from worker.celery import RETRIES, app, database


@app.task(name="worker.ingest_document", base=DeliveredTask, **RETRIES)
def ingest_document(*, document_id: str, title: str, text: str) -> None:
    """Store a document cut into chunks; delivered twice, it leaves one result."""
    new = NewDocument(id=document_id, title=title, text=text)
    with database.session() as session:
        service.ingest_document(session, id=new.id, title=new.title, text=new.text)
