"""The example of docs/integrations/celery.md, as its reader runs it."""

import re
import sys

import pytest
from processes import ROOT, run_python, started, wait_until
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from poolkit.tables import dead_letters

PAGE = (ROOT / "docs/integrations/celery.md").read_text()


@pytest.mark.process
def test_example_of_the_page_charges_an_order(database, broker, tmp_path):
    """The two files of the page, copied into a folder, are a worker with one connection in each child, that keeps what fails."""
    for name in ("shop.py", "celeryconfig.py"):
        source = re.search(
            rf'^```python title="{name}"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL
        )
        assert source is not None
        (tmp_path / name).write_text(source[1])
    dead_letters.create(create_engine(database.url(), poolclass=NullPool))
    environ = {"DATABASE_URL": database.url(driver=""), "BROKER_URL": broker.url}
    send = (
        "from shop import *; Base.metadata.create_all(database.engine)\n"
        "with database.session() as session: session.add(Order(id=5))\n"
        "charge.apply_async([5], queue='page'); charge.apply_async([6], queue='page')"
    )
    sent = run_python("-c", send, cwd=tmp_path, environ=environ)
    assert sent.returncode == 0, sent.stderr
    command = (sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "2", "-Q", "page")
    with started(*command, cwd=tmp_path, environ=environ) as worker:
        worker.wait_until(lambda: database.execute("SELECT 1 FROM orders WHERE paid"), "the charge")
        (letter,) = wait_until(lambda: database.execute("SELECT * FROM dead_letters"), "a letter")
        assert letter["error_type"] == "sqlalchemy.exc.NoResultFound"
        assert 1 <= len(database.backends("worker:")) <= 2
        assert worker.terminate() == 0
    database.wait_for_backends(0)
