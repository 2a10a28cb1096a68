"""Executes a user's file once, and finds its classes by the hash of its bytes from then on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nolabel._usercode.reference import HASH_DIGITS, Reference, parse, references
from nolabel._usercode.trust import is_trusted, remember
from nolabel.errors import FileDamaged, UntrustedCode, UsageError

Suits = Callable[[object], bool]  # whether what a file defines is what is looked for


@dataclass(frozen=True)
class UserFile:
    """A user's file as it was executed.

    Attributes:
        name: file name, such as `my.py`.
        content: its bytes.
        sha256: their SHA-256, 64 hexadecimal digits.
        original: absolute path where the user has it.
        module: what executing it gave.
    """

    name: str
    content: bytes
    sha256: str
    original: str
    module: ModuleType


@dataclass(frozen=True)
class Found:
    """What a user's file defines, and the name under which it is found again."""

    value: object
    name: str  # file.py:Class@hash


_FILES: dict[str, UserFile] = {}  # executed in this process, by the digits that stand in names
_SAID: set[tuple[str, str]] = set()  # (hash, path) of originals that were said to differ


def load_path(text: str, suits: Suits, what: str) -> Found:
    """Executes a file that the user named, and remembers its bytes as trusted.

    The same bytes are executed once a process, so that their classes are the same wherever they
    are asked for. A name with a hash is found among what was executed.

    Args:
        text: `path/to/file.py:Class`, or without the class where only one suits.
        suits: which of the file's definitions may be meant.
        what: these definitions in words, for messages: "method class (a subclass of ...)".

    Raises:
        UsageError: no such file or class, or the file imports a file beside it.
    """
    reference = parse(text)
    if reference is None:
        raise UsageError(f"{text!r} names no file. Give path/to/file.py:Class.")
    if reference.digest:
        return Found(find(text, suits, what), text)
    path = Path(reference.file).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"No such file: {reference.file}. Give path/to/file.py:Class.")
    file = _execute(path, path.read_bytes(), str(path))
    remember(file.sha256, path)
    attribute = reference.attribute or _only(file, suits)
    value = _get(file, attribute, suits, what)
    return Found(value, str(Reference(file.name, attribute, file.sha256[:HASH_DIGITS])))


def find(text: str, suits: Suits, what: str) -> object:
    """The class that a name with a hash stands for, or that a path names (`load_path`).

    Raises:
        UsageError: no such class, or the file has not been executed in this process: what names it
            was not read by `admit`.
    """
    reference = parse(text)
    if reference is None or not reference.digest:
        return load_path(text, suits, what).value
    file = _FILES.get(reference.digest)
    if file is None:
        raise UsageError(
            f"The code of {text!r} is not loaded. Give its file, path/to/{reference.file}:"
            f"{reference.attribute}, or the folder of the run that holds {reference.copy}."
        )
    return _get(file, reference.attribute, suits, what)


def records(value: object) -> dict[str, dict[str, str]]:
    """What has to be kept of the files that a nested value names.

    Returns:
        Name of the copy (`code/my-1f2e3d4c5b6a.py`) -> {"sha256", "original"}.
    """
    out = {}
    for reference in references(value):
        file = _FILES.get(reference.digest)
        if file is not None:
            out[reference.copy] = {"sha256": file.sha256, "original": file.original}
    return out


def copy_code(value: object, folder: Path) -> None:
    """Writes the files that a nested value names into `folder`/code; those there are left.

    Raises:
        OSError: the folder cannot be written to.
    """
    for reference in references(value):
        file, path = _FILES.get(reference.digest), folder / reference.copy
        if file is not None and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)


def admit(value: object, folder: Path, kept: object = None, *, paths: bool = False) -> None:
    """Makes the code that a nested value names available from the copies in `folder`.

    Args:
        value: a configuration or an encoder's header as read: names stand in its strings.
        folder: that the file lies in.
        kept: the `records` that were saved with it, if there are any.
        paths: whether it may also name code by a path, as a configuration that a person wrote;
            what lies there has to be trusted as well.

    Raises:
        UntrustedCode: the code was never executed here at the user's wish, and is not allowed now.
        UsageError: the copy is missing, or the value names code by a path.
        FileDamaged: the copy is not what the name says.
    """
    if paths:
        _trust_paths(value)
    else:
        refuse_paths(value, folder)
    known = kept if isinstance(kept, Mapping) else {}
    for reference in references(value):
        if not reference.digest:
            continue
        if reference.digest not in _FILES:
            _admit_one(reference, folder)
        record = known.get(reference.copy)
        if isinstance(record, Mapping) and isinstance(record.get("original"), str):
            _compare(reference, record["original"], folder / reference.copy)


def admitted(raw: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """A configuration that the user named, after `admit`: the code that it names is trusted.

    Args:
        raw: its content. Its method is left out: the user names another one.
        path: of its file, beside which copies of code may lie.

    Raises:
        UntrustedCode, UsageError, FileDamaged: as `admit`.
    """
    named = {k: v for k, v in raw.items() if k != "method"}
    admit(named, Path(path).parent, raw.get("code"), paths=True)
    return raw


def load_uncopied(text: str, suits: Suits, what: str) -> Found:
    """The class that a run's folder names by a path: runs made before copies were kept.

    Raises:
        UntrustedCode: the bytes at the path were never executed here at the user's wish, and are
            not allowed now.
        UsageError: no such file or class.
    """
    reference = parse(text)
    path = Path(reference.file if reference else text).expanduser().resolve()
    if reference is None or not path.is_file():
        raise UsageError(
            f"The run was made with the code {text!r}, of which its folder holds no copy, and "
            f"there is no such file from here. Go to the folder from which {text!r} leads to it."
        )
    if not is_trusted(hashlib.sha256(path.read_bytes()).hexdigest()):
        raise UntrustedCode(
            f"The run names code that you have not run on this machine before: {path}. Read it; "
            "if you trust it, use --trust-code (in Python trust_code=True)."
        )
    return load_path(text, suits, what)


def refuse_paths(value: object, folder: Path | str) -> None:
    """Refuses a nested value, read from a file, that names code by its path.

    Raises:
        UsageError: it does. Whoever wrote the file would choose what is executed here.
    """
    for reference in references(value):
        if not reference.digest:
            raise UsageError(
                f"{folder} names the code {str(reference)!r} without its hash, and holds no copy "
                "of it; it is not executed."
            )


def _trust_paths(value: object) -> None:
    for reference in references(value):
        path = Path(reference.file).expanduser().resolve()
        if reference.digest or not path.is_file():
            continue  # a missing file is said where it is used
        if not is_trusted(hashlib.sha256(path.read_bytes()).hexdigest()):
            raise UntrustedCode(
                f"The configuration names code that you have not run on this machine before: "
                f"{path}. Read it; if you trust it, use --trust-code (in Python trust_code=True)."
            )


def _admit_one(reference: Reference, folder: Path) -> None:
    path = folder / reference.copy
    if not path.is_file():
        raise UsageError(
            f"{folder} needs the code {reference.file!r}, and its copy {reference.copy} is "
            "missing. Copy the folder again with everything in it."
        )
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(reference.digest):
        raise FileDamaged(
            f"{path} was changed after it was copied there: its SHA-256 begins with "
            f"{sha256[:HASH_DIGITS]}, not {reference.digest}. Restore it, or start a new run with "
            "your changed file."
        )
    if not is_trusted(sha256):
        raise UntrustedCode(
            f"{folder} holds code that you have not run on this machine before: {path} "
            f"({reference.file}:{reference.attribute}). Read it; if you trust it, use --trust-code "
            "(in Python trust_code=True)."
        )
    _execute(path, content, str(path.resolve()))
    remember(sha256, path.resolve())


def _compare(reference: Reference, original: str, copy: Path) -> None:
    """Says where the file that was copied is another one by now, once a process."""
    if (reference.digest, original) in _SAID:
        return
    _SAID.add((reference.digest, original))
    path = Path(original)
    try:
        same = hashlib.sha256(path.read_bytes()).hexdigest().startswith(reference.digest)
    except OSError:
        say = f"{original} is gone"
    else:
        if same:
            return
        say = f"{original} has changed since it was copied"
    from nolabel import distributed  # imports torch

    if distributed.is_main():
        sys.stderr.write(f"{say}: the copy {copy} is used.\n")
        sys.stderr.flush()


def _execute(path: Path, content: bytes, original: str) -> UserFile:
    """What these bytes define. They are compiled here: a cache of bytecode is never read."""
    sha256 = hashlib.sha256(content).hexdigest()
    digest = sha256[:HASH_DIGITS]
    if digest in _FILES:
        return _FILES[digest]
    tree = ast.parse(content, str(path))
    _refuse_siblings(tree, path)
    # Dataclasses and type hints look their module up in sys.modules, so it needs a name there; no
    # two files share one, and no import finds it.
    module = ModuleType(f"nolabel_user_code_{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(tree, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    name = path.name
    if path.parent.name == "code" and path.stem.endswith(f"-{digest}"):  # a copy
        name = path.stem.removesuffix(f"-{digest}") + ".py"
    file = _FILES[digest] = UserFile(name, content, sha256, original, module)
    return file


def _refuse_siblings(tree: ast.AST, path: Path) -> None:
    """Refuses a file that imports a file beside it: only the file itself is copied.

    Raises:
        UsageError: it does, or it imports relative to a package that it is not in.
    """
    for top in sorted(set(_imported(tree, path))):
        beside = [path.parent / f"{top}.py", path.parent / top / "__init__.py"]
        if not any(p.is_file() for p in beside) or top in sys.stdlib_module_names:
            continue
        try:
            spec = importlib.util.find_spec(top)
        except ValueError:  # a module without a spec, such as __main__
            continue
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin in [p.resolve() for p in beside]:
            raise UsageError(
                f"{path} imports {top!r}, a file beside it. Only {path.name} is copied into a "
                "run's folder, so it has to stand alone: move what it needs into it, or install "
                f"{top!r} as a package."
            )


def _imported(tree: ast.AST, path: Path) -> Iterable[str]:
    """First parts of the names of all modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise UsageError(
                    f"{path}, line {node.lineno}: a relative import. Only {path.name} is copied "
                    "into a run's folder, so it has to stand alone: move what it needs into it."
                )
            yield (node.module or "").partition(".")[0]


def _own(file: UserFile, suits: Suits) -> list[str]:
    """Names of what the file itself defines and that suits."""
    return [
        name
        for name, value in vars(file.module).items()
        if suits(value) and value.__module__ == file.module.__name__
    ]


def _only(file: UserFile, suits: Suits) -> str:
    """The name that is meant where none is given; "" where there is no single one."""
    own = _own(file, suits)
    return own[0] if len(own) == 1 else ""


def _get(file: UserFile, attribute: str, suits: Suits, what: str) -> object:
    value = vars(file.module).get(attribute)
    if not attribute or not suits(value):
        found = ", ".join(_own(file, suits)) or "none"
        missing = f"no {what} {attribute!r}" if attribute else f"not one {what} alone"
        raise UsageError(f"{file.name} has {missing}. Found: {found}.")
    return value
