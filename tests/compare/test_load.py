"""Figures read from the file of requests while it grows."""

from functools import partial

from poolkit.compare.results.run_folder import Level
from poolkit.compare.run import load
from poolkit.compare.run.load import OVER_S

HEADER = "due,started,latency_ms,service_ms,method,name,status,error\n"
ONE_USER = Level(users=1, rate_per_user=1.0)
NOW = 1_800_000_000.0
LiveFigures = partial(load.LiveFigures, clock=lambda: NOW + 0.001)


def row(started, latency_ms):
    return f"{started},{started},{latency_ms},{latency_ms},GET,/,200,\n"


def test_there_are_no_figures_without_a_file(tmp_path):
    """Before Locust has written a row, the figures are 0."""
    figures = LiveFigures(tmp_path / "requests.csv", ONE_USER)
    assert figures.update() == 0
    assert (figures.per_s, figures.p95_ms) == (0, 0)


def test_rows_are_counted_as_they_arrive_and_half_a_row_waits(tmp_path):
    """An incomplete line is read when its end is written."""
    file = tmp_path / "requests.csv"
    figures = LiveFigures(file, ONE_USER)
    first, second = row(NOW, 5), row(NOW + 0.1, 7)
    file.write_text(HEADER + first + second[:10])
    assert figures.update() == 1
    assert figures.first == NOW
    with file.open("a") as more:
        more.write(second[10:])
    assert figures.update() == 2


def test_figures_look_back_a_few_seconds(tmp_path):
    """Old rows count for the total only."""
    file = tmp_path / "requests.csv"
    old = "".join(row(NOW - 60 + i / 100, 1000) for i in range(50))
    new = "".join(row(NOW - 0.5, latency) for latency in range(1, 101))
    file.write_text(HEADER + old + new)
    figures = LiveFigures(file, ONE_USER)
    assert figures.update() == 150
    assert figures.per_s == 100 / OVER_S
    assert figures.p95_ms == 96


def steady(tmp_path, rows):
    """Return whether 4 users with 2 tasks a second are steady with these rows."""
    file = tmp_path / "requests.csv"
    file.write_text(HEADER + "".join(rows))
    figures = LiveFigures(file, Level(users=4, rate_per_user=2.0))
    figures.update()
    return figures.is_steady


def test_a_target_that_answers_every_user_in_time_is_steady(tmp_path):
    """All tasks scheduled in the last whole period were sent in time."""
    every_125_ms = [NOW - 2 + i / 8 for i in range(16)]
    assert steady(tmp_path, [row(started, 5) for started in every_125_ms])


def test_a_target_that_one_user_waits_for_is_not_steady(tmp_path):
    """A user that waits for a cold start sends nothing: that is the sign."""
    every_125_ms = [NOW - 2 + i / 8 for i in range(16)]
    of_three = [row(started, 5) for i, started in enumerate(every_125_ms) if i % 4]
    assert not steady(tmp_path, of_three)
    assert not steady(tmp_path, [])


def test_a_target_that_works_off_a_backlog_is_not_steady(tmp_path):
    """A late request waited for one before it."""
    late = [f"{NOW - 2 + i / 8},{NOW - 1.8 + i / 8},205,5,GET,/,200,\n" for i in range(16)]
    assert not steady(tmp_path, late)


def steady_in_an_open_loop(tmp_path, rows, arrivals="constant"):
    """Return whether 40 tasks a second of an open loop are steady with these rows."""
    file = tmp_path / "requests.csv"
    file.write_text(HEADER + "".join(rows))
    level = Level(users=10, arrival_rate=40.0, arrivals=arrivals, max_users=10)
    figures = LiveFigures(file, level)
    figures.update()
    return figures.is_steady


def test_an_open_loop_is_steady_if_every_arrival_is_answered(tmp_path):
    """Their number is that of the rate; with random arrivals, within the range of chance."""
    rows = [row(NOW - 2 + i / 40, 5) for i in range(80)]
    assert steady_in_an_open_loop(tmp_path, rows)
    fewer = [text for i, text in enumerate(rows) if i % 4]
    assert not steady_in_an_open_loop(tmp_path, fewer)
    assert steady_in_an_open_loop(tmp_path, fewer, arrivals="poisson")
    assert not steady_in_an_open_loop(tmp_path, rows[::4], arrivals="poisson")


def test_a_function_that_is_throttled_is_not_steady(tmp_path):
    """It answers 429 at once while its execution environments start."""
    rows = [row(NOW - 2 + i / 40, 5) for i in range(80)]
    throttled = [text.replace(",200,", ",429,429") for text in rows]
    assert not steady_in_an_open_loop(tmp_path, [*rows[:-1], throttled[-1]])
    assert steady_in_an_open_loop(tmp_path, [*throttled[:2], *rows[2:]])
