"""The sample's tasks on a worker, as it is deployed."""

import urllib.request

from processes import wait_until

from poolkit.local.ports import free_port


def test_documents_are_ingested_once_each(site):
    """Documents sent, one of them three times, are stored in chunks, and a warm shutdown closes all connections."""
    port = free_port()
    worker = site.start(WORKER_METRICS_PORT=str(port), POOLKIT_LEAK_DETECTION_THRESHOLD="20")
    for document_id in ("a", "b", "b", "b"):
        site.send(document_id, text="One. Two.")
    wait_until(lambda: len(site.documents()) == 2, "2 documents")
    wait_until(
        lambda: sum("succeeded" in record["message"] for record in worker.records()) == 4,
        "four tasks done",
    )
    assert len(site.database.execute("SELECT * FROM chunks")) == 2
    assert {row["application_name"][:7] for row in site.database.backends()} == {"worker:"}

    def figures():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            return answer.read()

    # A child writes its figures once a second.
    wait_until(lambda: b'unit="worker.ingest_document"' in figures(), "figures of the tasks")
    assert b"poolkit_pool_checkouts_total" in figures()
    assert b'poolkit_pool_leaked_total{target="worker"} 0.0' in figures()
    assert worker.terminate() == 0
    site.database.wait_for_backends(0, "worker:")
    assert not worker.ready_file.exists()


def test_bad_input_goes_to_the_dead_letters_at_once(site):
    """A document that breaks the schema is recorded with its error and its content, and not tried again."""
    worker = site.start()
    arguments = {"document_id": "not an id", "title": "", "text": "a\0b"}
    sent = site.app.send_task("worker.ingest_document", kwargs=arguments)
    (letter,) = wait_until(lambda: site.database.execute("SELECT * FROM dead_letters"), "a letter")
    assert (letter["source"], letter["message_id"]) == ("worker.ingest_document", sent.id)
    assert letter["payload"] == {"args": [], "kwargs": arguments}
    assert letter["error_type"].endswith("ValidationError")
    assert "3 validation errors for NewDocument" in letter["error"]
    assert letter["attempts"] == 1
    assert not worker.logged("Retry in")


def test_unknown_task_goes_to_the_dead_letters(site):
    """A message that names no task of this worker is kept."""
    site.start()
    site.app.send_task("worker.no_such_task", kwargs={"x": 1})
    (letter,) = wait_until(lambda: site.database.execute("SELECT * FROM dead_letters"), "a letter")
    assert letter["source"] == "worker.no_such_task"
