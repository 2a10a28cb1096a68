"""Executes a user's file once per process, and finds its classes by the hash of its bytes."""

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

from nolabel._files import atomic
from nolabel._usercode.reference import HASH_DIGITS, Reference, parse, references
from nolabel._usercode.trust import is_trusted, remember
from nolabel.errors import FileDamaged, UntrustedCode, UsageError

Suits = Callable[[object], bool]  # whether an object of a file is of the kind that is looked for


@dataclass(frozen=True)
class UserFile:
    """A user's file as it was executed.

    Attributes:
        name: file name, such as `my.py`.
        content: bytes of the file.
        sha256: SHA-256 of the bytes, 64 hexadecimal digits.
        original: absolute path of the user's file.
        module: module that holds its definitions.
    """

    name: str
    content: bytes
    sha256: str
    original: str
    module: ModuleType


@dataclass(frozen=True)
class Found:
    """A class or function of a user's file, and the name under which `find` returns it again."""

    value: object
    name: str  # file.py:Class@hash


class Executed:
    """All files that were executed in this process.

    Unpickled in another process (a spawned data worker), it executes the same bytes there, so that
    what is unpickled after it may be of their classes.
    """

    def __reduce__(self) -> tuple[Callable[..., Executed], tuple[list[tuple[str, bytes, str]]]]:
        files = [(str(f.module.__file__), f.content, f.original) for f in _FILES.values()]
        return _execute_all, (files,)


def _execute_all(files: list[tuple[str, bytes, str]]) -> Executed:
    for path, content, original in files:
        _execute(Path(path), content, original)
    return Executed()


_FILES: dict[str, UserFile] = {}  # files executed in this process, by the hash digits of names
_REPORTED: set[tuple[str, str]] = set()  # (hash, path) of originals that were reported to differ


def load_path(text: str, suits: Suits, what: str) -> Found:
    """Executes a file that the user named, and records its bytes as trusted.

    The same bytes are executed once per process, so that every caller gets the same classes. A
    name with a hash is looked up among the files that were executed.

    Args:
        text: `path/to/file.py:Class`, or `path/to/file.py` if only one of its classes suits.
        suits: which of the file's definitions are of the right kind.
        what: that kind in words, for messages: "method class (a subclass of ...)".

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
    """The class that a name with a hash, or a path (`load_path`), stands for.

    Raises:
        UsageError: no such class, or its file was not executed in this process because `admit` was
            not called.
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
    """The records to save about the user's files that a nested value names.

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
    """Copies the files that a nested value names to `folder`/code; existing copies are kept.

    Raises:
        OSError: the folder cannot be written to.
    """
    for reference in references(value):
        file, path = _FILES.get(reference.digest), folder / reference.copy
        if file is not None and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as copy:
                copy.write(file.content)


def admit(value: object, folder: Path, kept: object = None, *, paths: bool = False) -> None:
    """Loads the code that a nested value names from the copies in `folder`, if it is trusted.

    Args:
        value: a configuration or an encoder's header as read; its strings may name code.
        folder: folder of the file that was read.
        kept: the `records` that were saved with it, if there are any.
        paths: whether names may also be paths without a hash, as in a configuration that a person
            wrote. The files at these paths must be trusted too.

    Raises:
        UntrustedCode: the user never ran this code on this machine, and does not allow it now.
        UsageError: the copy is missing, or the value names code by a path.
        FileDamaged: the copy does not have the hash in its name.
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
    """Calls `admit` for a configuration file that the user named, and returns the configuration.

    Args:
        raw: content of the file. Its `method` is not loaded, because the user names the method.
        path: of the file; copies of code may lie beside it.

    Raises:
        UntrustedCode, UsageError, FileDamaged: as `admit`.
    """
    named = {k: v for k, v in raw.items() if k != "method"}
    admit(named, Path(path).parent, raw.get("code"), paths=True)
    return raw


def load_uncopied(text: str, suits: Suits, what: str) -> Found:
    """The class that an old run names by a path, without a copy of the code in its folder.

    Raises:
        UntrustedCode: the user never ran the file at this path on this machine, and does not allow
            it now.
        UsageError: no such file or class.
    """
    reference = parse(text)
    path = Path(reference.file if reference else text).expanduser().resolve()
    if reference is None or not path.is_file():
        raise UsageError(
            f"The run was made with the code {text!r}. Its folder holds no copy of it, and there "
            f"is no such file here. Change to the folder in which the path {text!r} exists."
        )
    if not is_trusted(hashlib.sha256(path.read_bytes()).hexdigest()):
        raise UntrustedCode(
            f"The run names code that you have not run on this machine before: {path}. Read it; "
            "if you trust it, use --trust-code (in Python trust_code=True)."
        )
    return load_path(text, suits, what)


def refuse_paths(value: object, folder: Path | str) -> None:
    """Refuses a nested value, read from a file, that names code by its path.

    Otherwise the author of that file could choose which local file is executed.

    Raises:
        UsageError: the value names code by its path.
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
            continue  # a missing file is reported where it is used
        if not is_trusted(hashlib.sha256(path.read_bytes()).hexdigest()):
            raise UntrustedCode(
                "The configuration names code that you have not run on this machine before: "
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
    """Reports, once per process, if the original of a copied file was changed or deleted."""
    if (reference.digest, original) in _REPORTED:
        return
    _REPORTED.add((reference.digest, original))
    path = Path(original)
    try:
        if not path.is_file():  # a device has no end
            raise FileNotFoundError
        same = hashlib.sha256(path.read_bytes()).hexdigest().startswith(reference.digest)
    except OSError:
        text = f"{original} is gone"
    else:
        if same:
            return
        text = f"{original} has changed since it was copied"
    from nolabel import distributed  # imports torch

    if distributed.is_main():
        sys.stderr.write(f"{text}: the copy {copy} is used.\n")
        sys.stderr.flush()


def _execute(path: Path, content: bytes, original: str) -> UserFile:
    """Executes these bytes, unless they were executed before. Cached bytecode is never read."""
    sha256 = hashlib.sha256(content).hexdigest()
    digest = sha256[:HASH_DIGITS]
    if digest in _FILES:
        return _FILES[digest]
    tree = ast.parse(content, str(path))
    _refuse_siblings(tree, path)
    # Dataclasses and type hints look up their module in sys.modules, so it must be entered there.
    # The hash makes the name unique; no import statement uses it.
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
    """Refuses a file that imports another file of its folder, because only the file is copied.

    Raises:
        UsageError: it imports such a file, or has a relative import.
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
                "run's folder, so it must stand alone: move what it needs into it, or install "
                f"{top!r} as a package."
            )


def _imported(tree: ast.AST, path: Path) -> Iterable[str]:
    """Top-level names of all modules that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise UsageError(
                    f"{path}, line {node.lineno}: a relative import. Only {path.name} is copied "
                    "into a run's folder, so it must stand alone: move what it needs into it."
                )
            yield (node.module or "").partition(".")[0]


def _own(file: UserFile, suits: Suits) -> list[str]:
    """Names of the suitable objects that the file defines itself, without imported ones."""
    return [
        name
        for name, value in vars(file.module).items()
        if suits(value) and value.__module__ == file.module.__name__
    ]


def _only(file: UserFile, suits: Suits) -> str:
    """The name of the only suitable object; "" if there are none or several."""
    own = _own(file, suits)
    return own[0] if len(own) == 1 else ""


def _get(file: UserFile, attribute: str, suits: Suits, what: str) -> object:
    value = vars(file.module).get(attribute)
    if not attribute or not suits(value):
        found = ", ".join(_own(file, suits)) or "none"
        missing = f"no {what} {attribute!r}" if attribute else f"not exactly one {what}"
        raise UsageError(f"{file.name} has {missing}. Found: {found}.")
    return value
