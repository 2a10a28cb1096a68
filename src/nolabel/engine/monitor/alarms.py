"""What the first process found in a line of metrics, as all processes must know it."""

from __future__ import annotations

from typing import NamedTuple


class Alarms(NamedTuple):
    """Reasons to end a run; empty without an alarm."""

    collapsed: str = ""  # the doctor's verdict, while it is "collapsed"
    destroyed: str = ""  # why the network that --init named is being destroyed
