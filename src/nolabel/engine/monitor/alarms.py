"""The alarms of a line of metrics; rank 0 finds them, and they are broadcast to all ranks."""

from __future__ import annotations

from typing import NamedTuple


class Alarms(NamedTuple):
    """Reasons to stop a run; empty strings if there is none."""

    collapsed: str = ""  # the doctor's verdict while it is "collapsed"
    destroyed: str = ""  # why the features of --init count as destroyed
