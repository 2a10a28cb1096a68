"""Commands say what they do: on a pipe in lines, and never after long silence."""

from __future__ import annotations

import time

import pytest

from nolabel.data import progress


@pytest.fixture
def said(monkeypatch):
    """The lines that are written; silence is short."""
    lines = []
    monkeypatch.setattr(progress, "_write", lambda text: (lines.append(text), progress.heard()))
    monkeypatch.setattr(progress, "SILENCE", 0.01)
    return lines


def test_silence_is_broken_with_what_is_being_done(said):
    with progress.never_silent("nolabel plan"):
        time.sleep(0.7)
        with progress.phase("measuring"):
            time.sleep(0.7)
        with progress.talking():  # a bar is shown
            before = len(said)
            time.sleep(0.7)
            assert len(said) <= before + 1  # a line may just have been on its way
    assert said[0].startswith("nolabel plan: ") and any(s.startswith("measuring: ") for s in said)


def test_a_loop_has_lines_where_there_is_no_terminal(said, monkeypatch):
    with progress.progress_bar("reading", 10) as advance:
        for _ in range(10):
            time.sleep(0.02)
            advance(1)
    assert said[0].startswith("reading: 1 of 10, ") and len(said) <= progress.SEVERAL
    said.clear()
    with progress.progress_bar("reading", 10, False) as advance:
        advance(5)
    monkeypatch.setenv("RANK", "1")  # another process of a launcher
    with progress.progress_bar("reading", 10) as advance:
        advance(5)
    assert said == []
