"""What do the events of a pool show?

You may have read that three event listeners show when connections are opened, borrowed and returned
(0.38), and that the first use of a pool prints "borrowed" and "returned" only (0.39).

Here the listeners are attached, and a fourth for the end of a connection. A session is used twice,
then two at once, and the pool is disposed of. The server is asked how many connections there were.
`--set attached_late=1` attaches the listeners after the first use.
"""

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from poolkit.experiment import Lab, experiment


def use(engine: Engine) -> int:
    with Session(engine) as session:
        return session.execute(text("SELECT pg_backend_pid()")).scalar_one()


@experiment(question="What do the events of a pool show?", rows=("0.38", "0.39"), seconds=1)
def run(lab: Lab, *, attached_late: int = 0) -> None:
    engine = create_engine(lab.url(), pool_size=1, max_overflow=1)
    lab.at_end(engine.dispose)
    seen = {use(engine)} if attached_late else set()

    printed: list[str] = []
    # Listeners on the class Pool, as in the text, print for every engine of the process.
    event.listen(engine, "connect", lambda *_: printed.append("opened"))
    event.listen(engine, "checkout", lambda *_: printed.append("borrowed"))
    event.listen(engine, "checkin", lambda *_: printed.append("returned"))
    event.listen(engine, "close", lambda *_: printed.append("closed"))

    steps, done = {}, 0

    def step(name: str) -> None:
        nonlocal done
        seen.update(backend.pid for backend in lab.backends())
        steps[name], done = ", ".join(printed[done:]), len(printed)

    use(engine)
    step("a session")
    use(engine)
    step("another session")
    first, second = engine.connect(), engine.connect()
    step("two connections at once")
    first.close()
    second.close()
    step("their return")
    engine.dispose()
    step("dispose()")
    lab.table("What the listeners print", ("after", "printed"), steps.items())

    opened = printed.count("opened")
    lab.judge(
        "0.38",
        "listeners for connect, checkout and checkin show each connection that is opened, borrowed "
        "and returned",
        holds=opened == len(seen) and printed.count("borrowed") == printed.count("returned"),
        measured=f"the server had {len(seen)} connections, {opened} were printed; "
        f"{printed.count('borrowed')} borrowed, {printed.count('returned')} returned",
        why="A pool calls its listeners in the thread that borrows or returns a connection, from "
        "the moment on when they are attached. How long a borrower waited is in none of the events.",
    )
    lab.judge(
        "0.39",
        'the first use of a pool prints "borrowed" and "returned"',
        holds=steps["a session"] == "borrowed, returned",
        measured=f"the first session after the listeners printed {len(steps['a session'].split())} "
        f"lines: {steps['a session']}",
        why="The first checkout finds no idle connection, so the pool opens one. The line is "
        "missing only if the pool was used before the listeners were attached.",
    )
