"""Runs a case of a benchmark in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def child(script: str, *args: str, threads: int, name: str) -> Any:
    """The JSON in the last line that a script prints; None, with a line that says why, if it fails.

    Args:
        script: path of the script.
        args: its arguments.
        threads: of its computation.
        name: of the case.
    """
    own = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, script, *args], check=False, capture_output=True, text=True, env=own
    )
    if done.returncode:
        print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])
