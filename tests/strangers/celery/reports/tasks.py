from celery import Celery
from celery.signals import worker_process_init

from reports.config import BROKER_URL
from reports.models import Report, Session, engine

app = Celery("reports", broker=BROKER_URL)


@worker_process_init.connect
def forget_the_parents_connections(**_):
    engine.dispose(close=False)


@app.task(name="reports.count_words")
def count_words(report_id: str, text: str) -> int:
    words = len(text.split())
    with Session.begin() as session:
        session.merge(Report(id=report_id, words=words))
    return words


@app.task
def clean_up() -> None:
    with Session.begin() as session:
        session.query(Report).filter(Report.words == 0).delete()
