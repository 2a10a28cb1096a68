"""Progress on a terminal and without one."""

from __future__ import annotations

import io
import sys

import pytest

from nolabel.engine.log import say
from nolabel.engine.monitor import progress
from nolabel.engine.monitor.progress import Progress


class Time:
    """A clock that the test sets."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_without_a_terminal_there_is_a_line_every_few_seconds_and_one_at_the_end(
    monkeypatch, capsys
):
    clock = Time(monkeypatch)
    with Progress(100) as bar:
        for step in range(1, 101):
            clock.now += 0.6
            bar.update(step, 0.25, 32, 0.15)
    out, err = capsys.readouterr()
    printed = err.splitlines()
    assert out == ""
    assert len(printed) == 15  # 60 seconds: every 7 steps, that is 4.2 seconds, and the end
    assert printed[0].startswith("step 7/100")
    assert printed[-1].startswith("step 100/100")
    assert "loss 0.2500" in printed[0] and "53 images/s" in printed[0]
    assert "data wait 25%" in printed[0]
    assert "56 s left" in printed[0]


def test_rates_are_those_of_the_last_steps_not_of_the_whole_run(monkeypatch):
    clock = Time(monkeypatch)
    with Progress(1000, enabled="off") as bar:
        for step in range(1, 101):  # slow at first: one image a second, waiting all the time
            clock.now += 1.0
            bar.update(step, 1.0, 1, 1.0)
        assert bar.rate == pytest.approx(1.0)
        assert bar.data_wait == pytest.approx(1.0)
        for step in range(101, 201):
            clock.now += 0.1
            bar.update(step, 1.0, 1, 0.0)
        assert bar.rate == pytest.approx(10.0)
        assert bar.data_wait == pytest.approx(0.0)


def test_off_means_silence_and_notes_go_to_standard_error(capsys):
    with Progress(2, enabled="off") as bar:
        bar.update(2, 1.0, 1, 0.0)
        bar.note("unheard")
    assert capsys.readouterr() == ("", "")
    with Progress(20) as bar:
        bar.note("heard [bold]as it is[/bold]")
    say("plain")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "heard [bold]as it is[/bold]\nplain\n")


def test_on_a_terminal_there_is_a_bar_and_notes_stand_above_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(4, start=1) as bar:
        bar.update(2, 0.5, 8, 0.0)
        bar.note("a note [1]")
        bar.update(4, 0.125, 8, 0.0)
    shown = screen.getvalue()
    assert "a note [1]" in shown
    assert "4/4" in shown and "loss 0.1250" in shown and "data wait" in shown
    assert shown.count("a note") == 1
