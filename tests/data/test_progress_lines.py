"""Commands print what they are doing: lines of text on a pipe, at least every few seconds."""

from __future__ import annotations

import time

import pytest

from nolabel.data import progress


@pytest.fixture
def written(monkeypatch):
    """The lines that are written, at short intervals."""
    lines = []
    monkeypatch.setattr(
        progress, "_write", lambda text: (lines.append(text), progress.note_output())
    )
    monkeypatch.setattr(progress, "STATUS_SECONDS", 0.01)
    return lines


def test_status_lines_name_what_is_being_done(written):
    with progress.status_lines("nolabel plan"):
        time.sleep(0.7)
        with progress.phase("measuring"):
            time.sleep(0.7)
        with progress.bar_shown():  # a bar is shown
            before = len(written)
            time.sleep(0.7)
            assert len(written) <= before + 1  # a line may have been written before the bar
    assert written[0].startswith("nolabel plan: ") and any(
        s.startswith("measuring: ") for s in written
    )


def test_a_loop_has_lines_where_there_is_no_terminal(written, monkeypatch):
    with progress.progress_bar("reading", 10) as advance:
        for _ in range(10):
            time.sleep(0.02)
            advance(1)
    assert written[0].startswith("reading: 1 of 10, ") and len(written) <= progress.FIRST_LINES
    written.clear()
    with progress.progress_bar("reading", 10, False) as advance:
        advance(5)
    monkeypatch.setenv("RANK", "1")  # another process of a launcher
    with progress.progress_bar("reading", 10) as advance:
        advance(5)
    assert written == []
