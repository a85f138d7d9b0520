"""Progress on terminals of several widths, and in a log."""

import io

import pytest
from rich.console import Console

from poolkit.compare.run.progress import LiveProgress, progress_on

# Whatever terminal the tests are started from.
TERM = {"TERM": "xterm-256color"}
TERMINAL = {"force_terminal": True, "color_system": None, "_environ": TERM}


def drawn(width, name="lambda_proxy", **figures):
    """Return the live line of a busy moment, as the terminal shows it."""
    console = Console(file=io.StringIO(), width=width, **TERMINAL)
    progress = LiveProgress(console)
    progress.target(name, 10, 12, name)
    progress.stage("warming up")
    progress.figures(0.5, **{"per_s": 412.0, "p95_ms": 1044.8, "connections": 120} | figures)
    with console.capture() as said:
        console.print(progress.line(width))
    return said.get().splitlines()


@pytest.mark.parametrize("width", [60, 76, 80, 100, 110, 120, 200])
def test_the_live_line_is_one_line_that_fits(width):
    """A wrapped line would flicker and leave half of itself behind."""
    (line,) = drawn(width)
    assert len(line) <= width
    assert "lambda_proxy (10 of" in line


def test_all_figures_fit_in_80_and_in_120_columns():
    """The narrow form shortens the words, not the figures."""
    for width in (80, 120):
        (line,) = drawn(width)
        assert all(text in line for text in ("warming up", "412", "1045 ms", "120"))
        assert "━" in line


def test_level_and_round_fit_in_80_columns():
    """All figures fit beside them; the bar does not."""
    (line,) = drawn(80, "lambda_proxy, 200/s #3")
    assert all(text in line for text in ("lambda_proxy, 200/s #3 (10 of 12)", "412", "120 open"))


def test_a_narrow_terminal_cuts_words_and_does_not_wrap():
    """Even 40 columns have one line."""
    assert len(drawn(40)) == 1


def test_a_finished_target_stays_above_the_live_line():
    """It is printed once, even if it has to be shortened."""
    file = io.StringIO()
    console = Console(file=file, width=40, **TERMINAL)
    with progress_on(console) as progress:
        progress.target("web", 1, 1, "web")
        progress.finished("web", "3 connections opened in 20 s, 12 cold starts")
    assert file.getvalue().count("web           3 connections") == 1


def test_without_a_terminal_there_are_plain_lines():
    """A log gets a line for each stage, and not four lines a second."""
    file = io.StringIO()
    with progress_on(Console(file=file, width=80)) as progress:
        assert not isinstance(progress, LiveProgress)
        progress.target("web", 1, 2, "web")
        progress.stage("measuring")
        for _ in range(50):
            progress.figures(0.5, 40.0, 12.0, 7)
        progress.finished("web", "done")
    lines = ["web (1 of 2): starting", "web (1 of 2): measuring", "web: done"]
    assert file.getvalue().splitlines() == lines


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    """TERM=dumb, as in an editor's shell, cannot redraw a line in place."""
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with progress_on(console) as progress:
        assert not isinstance(progress, LiveProgress)
