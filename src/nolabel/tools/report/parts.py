"""What a report reads from a run's folder. Each part is checked; one that is damaged is named.

A folder may come from somebody else, be cut short by a full disk, or be edited: nothing in it may
end the report, nor make it wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nolabel._files import read_json, read_text
from nolabel.config import Run
from nolabel.data.sources._decode import open_regular
from nolabel.encoders.file import ENCODER_FILE, read_header
from nolabel.engine.monitor.metrics import parse_metrics
from nolabel.engine.monitor.snapshots import FOLDER, Snapshots, read_snapshots
from nolabel.engine.run_folder import TOURNAMENT
from nolabel.engine.saved_run import load_run
from nolabel.errors import BadImage, NolabelError, UntrustedCode
from nolabel.protocols.compare import COMPARISON

_LARGEST = 1e9  # of a value in a table; shares are printed in per cent
_MOST_METRICS = 200_000_000  # bytes of metrics.jsonl; a long run's has ten million


class Parts:
    """The parts of a run's folder.

    Args:
        folder: of the run.

    Attributes:
        damaged: what could not be used of the parts that were read so far, in words.
        notes: what the user can do about parts that were left out.
    """

    def __init__(self, folder: Path):
        self.folder, self.damaged = folder, dict[str, None]()
        self.notes: list[str] = []

    def text(self, name: str) -> str:
        """The text of a file; "" without one."""
        found = read_text(self.folder / name)
        if found is None and self._exists(name):
            self._note(name)
        return found or ""

    def run(self) -> Run | None:
        """The saved run; None if config.yaml cannot be read or needs untrusted code."""
        try:
            return load_run(self.folder)
        except UntrustedCode as error:
            self.notes.append(str(error))
        except (NolabelError, TypeError, ValueError, OverflowError) as error:
            self._note("config.yaml", str(error))
        return None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that can be used."""
        name = "metrics.jsonl"
        text = read_text(self.folder / name, _MOST_METRICS)
        if text is None:
            if self._exists(name):
                self._note(name)
            return []
        lines, bad = parse_metrics(text)
        if bad:
            self._note(name, f"{bad} of {bad + len(lines)} lines")
        return lines

    def comparison(self) -> tuple[str, list[dict[str, Any]]]:
        """The run's name in comparison.json and its rows; "" and [] without one."""
        kept = read_json(self.folder / COMPARISON)
        if not isinstance(kept, dict):
            if self._exists(COMPARISON):
                self._note(COMPARISON)
            return "", []
        found, name = kept.get("rows"), kept.get("run")
        rows = found if isinstance(found, list) else []
        good = [row for row in rows if _is_row(row)]
        if not isinstance(found, list) or not isinstance(name, str | None):
            self._note(COMPARISON)
        elif len(good) < len(rows):
            self._note(COMPARISON, f"{len(rows) - len(good)} of {len(rows)} rows")
        return name if isinstance(name, str) else "", good

    def tournament(self) -> dict[str, Any]:
        """How the method was chosen by trial; {} if it was not."""
        kept = read_json(self.folder / TOURNAMENT)
        if not isinstance(kept, dict) and self._exists(TOURNAMENT):
            self._note(TOURNAMENT)
        return kept if isinstance(kept, dict) else {}

    def snapshots(self) -> Snapshots | None:
        """The feature snapshots."""
        found = read_snapshots(self.folder)
        if found is None and any((self.folder / FOLDER).glob("*.npz")):
            self._note(FOLDER)
        return found

    def encoder(self) -> str:
        """The checksum of the encoder; "" if its file cannot be read."""
        return encoder_checksum(self.folder)

    def _exists(self, name: str) -> bool:
        path = self.folder / name
        return path.exists() or path.is_symlink()

    def _note(self, name: str, why: str = "") -> None:
        self.damaged[f"{name} ({why[:300]})" if why else name] = None


def encoder_checksum(folder: Path) -> str:
    """The checksum of a run's encoder file; "" if it cannot be read."""
    try:
        return str(read_header(folder / ENCODER_FILE)["checksum"])
    except (NolabelError, OSError):
        return ""


def read_picture(path: Path) -> np.ndarray | None:
    """A picture, uint8 [H, W, 3]; None if it is no readable PNG, whatever its name says."""
    try:
        with (
            open_regular(str(path)) as file,
            Image.open(file, formats=["PNG"]) as picture,
        ):
            return np.asarray(picture.convert("RGB"))
    except (BadImage, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _is_row(row: object) -> bool:
    """Whether it is a row of a comparison: values as `protocols.report` writes them."""
    if not isinstance(row, Mapping) or not _is_real(row.get("value")):
        return False
    texts: Sequence[object] = [row.get(k, "") for k in ("protocol", "setting", "metric")]
    if not isinstance(row.get("encoder"), str) or not all(isinstance(t, str) for t in texts):
        return False
    limits = [row.get(k) for k in ("low", "high")]
    if (limits[0] is None) != (limits[1] is None):
        return False
    return all(v is None or _is_real(v) for v in (*limits, row.get("chance")))


def _is_real(value: object) -> bool:
    """Whether it is a number, NaN included, of a size that can be printed."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value != value or abs(value) < _LARGEST
