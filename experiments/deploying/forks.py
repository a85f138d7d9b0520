"""What happens to an engine when a process forks?

You may have read that web applications and the workers of Celery and RQ get the same few lines: an
engine of the module, with a pool (1.56). But such workers fork after they have imported the module,
and perhaps used the engine. Parent and children then have the same sockets.

This file runs itself as a worker. It uses its engine once and forks. Each child sends queries whose
answers it knows, and is ended by an alarm if one does not come within 3 s. Then the parent looks
whether its connection still works. RQ forks one child at a time, Celery several.
"""

import json
import os
import signal
import subprocess
import sys

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from poolkit.experiment import Lab, experiment

SHARED = "the parent's engine"
DISPOSE = "engine.dispose() in each child"
LEAVE = "engine.dispose(close=False) in each child"
OWN = "a new engine in each child"
ANSWER_WITHIN_S = 3


def worker(way: str, children: int, queries: int) -> None:
    engine = create_engine(os.environ["DATABASE_URL"], pool_size=5, max_overflow=5)
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    reports = []
    all_forked, fork_more = os.pipe()
    for child in range(children):
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                os.close(fork_more)
                os.read(all_forked, 1)  # Ends when no process has the other end any more.
                if way == DISPOSE:
                    engine.dispose()
                elif way == LEAVE:
                    engine.dispose(close=False)
                elif way == OWN:
                    engine = create_engine(os.environ["DATABASE_URL"])
                os.write(writing, json.dumps(send(engine, child, queries)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        reports.append(reading)
    os.close(fork_more)
    print(json.dumps([json.loads(os.read(report, 1000) or "{}") for report in reports]), flush=True)
    signal.alarm(ANSWER_WITHIN_S)
    with engine.connect() as connection:
        print(connection.scalar(text("SELECT pg_backend_pid()")) == pid)


def send(engine: Engine, child: int, queries: int) -> dict[str, int]:
    """Return the number of right and wrong answers, and of errors."""
    found = {"right": 0, "wrong": 0, "errors": 0}
    for query in range(queries):
        number = child * queries + query
        signal.alarm(ANSWER_WITHIN_S)
        try:
            with engine.connect() as connection:
                answer = connection.scalar(text("SELECT :number"), {"number": number})
            found["right" if answer == number else "wrong"] += 1
        except SQLAlchemyError:
            found["errors"] += 1
    return found


@experiment(question="What happens to an engine when a process forks?", rows=("1.56",), seconds=6)
def run(lab: Lab, *, children: int = 4, queries: int = 100, driver: str = "psycopg2") -> None:
    arms = {
        f"{SHARED}, one child": (SHARED, 1),
        f"{SHARED}, {children} children": (SHARED, children),
        **{way: (way, children) for way in (DISPOSE, LEAVE, OWN)},
    }
    rows, good = [], {}
    for name, (way, count) in arms.items():
        lab.say(name)
        command = [sys.executable, __file__, way, str(count), str(queries)]
        environ = os.environ | {"DATABASE_URL": lab.url(driver)}
        worked = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        answers, *lives = worked.stdout.splitlines()
        sums = {
            kind: sum(each.get(kind, 0) for each in json.loads(answers))
            for kind in ("right", "wrong", "errors")
        }
        without_answer = count * queries - sum(sums.values())
        rows.append((name, *sums.values(), without_answer, lives == ["True"]))
        good[name] = sums["right"] == count * queries and lives == ["True"]
    columns = ("engine", "right answers", "wrong", "errors", "none", "parent's connection works")
    lab.table(f"{queries} queries from each child", columns, rows)
    shared = rows[1]
    lab.judge(
        "1.56",
        "the engine of a web application serves the workers of Celery and RQ too",
        holds={name: good[name] for name in list(arms)[:2]},
        measured=f"{children} children with {SHARED}: {shared[1]} right answers, {shared[2]} wrong "
        f"ones, {shared[3]} errors, {shared[4]} without an answer. All right, and the parent's "
        f"connection alive: {', '.join(name for name in arms if good[name])}",
        why="fork copies the pool and its sockets. Processes that write to one socket mix their "
        "messages, and each reads answers that are meant for another. With TLS one child is enough: "
        "its messages change the state of the encryption, which the parent's copy does not see. "
        "dispose() in a child closes the connection on the server, so the parent loses it; "
        "dispose(close=False) forgets it without a word to the server. An engine that is first "
        "used after the fork is safe. Engines of poolkit begin with an empty pool in a child.",
    )


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
