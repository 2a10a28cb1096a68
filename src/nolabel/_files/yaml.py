"""Reads YAML files that somebody else may have written: bounded size, nothing is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nolabel.errors import UsageError

_MAX_YAML_BYTES = 1_000_000
_MAX_YAML_NODES = 20_000


def _read_limited(path: Path) -> str:
    """The text of a file of at most `_MAX_YAML_BYTES`. Raises OSError or UsageError."""
    if not path.is_file() and path.exists():  # a pipe would make us wait for ever
        raise UsageError(f"{path} is not a file. Give a YAML file.")
    with path.open("rb") as file:
        data = file.read(_MAX_YAML_BYTES + 1)
    if len(data) > _MAX_YAML_BYTES:
        raise UsageError(
            f"{path} is larger than {_MAX_YAML_BYTES:,} bytes; a run's has some 5,000."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason}).") from None


def _nodes(root: yaml.Node | None, limit: int) -> int:
    """Nodes of a YAML document, those behind an alias counted at each use; stops above `limit`.

    A document of a kilobyte whose aliases refer to lists of aliases can stand for billions.
    """
    count, pending = 0, [root]
    while pending and count <= limit:
        node = pending.pop()
        count += 1
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            pending.extend(part for pair in node.value for part in pair)
    return count


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file of 'key: value' lines."""
    try:
        text = _read_limited(Path(path))
        if _nodes(yaml.compose(text, Loader=yaml.SafeLoader), _MAX_YAML_NODES) > _MAX_YAML_NODES:
            raise UsageError(
                f"{path} holds more than {_MAX_YAML_NODES:,} values; a run has some 100."
            )
        raw = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}. Give an existing file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {str(error)[:500]}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds no 'key: value' lines. Give a run's config.yaml.")
    return raw
