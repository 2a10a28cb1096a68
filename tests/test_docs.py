"""Every command and example in the README and the documentation runs."""

from __future__ import annotations

import contextlib
import importlib
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from nolabel import cli, methods
from nolabel.pictures import PICTURES
from nolabel.protocols.run import PROTOCOLS

ROOT = Path(__file__).parents[1]
GROUPS = {  # commands of one group build on each other
    "data": ["README.md", "docs/data.md"],
    "methods": ["docs/methods.md", "docs/own-method.md"],
    "own network": ["docs/own-backbone.md"],
    "encoders": ["docs/encoders.md", "docs/protocols.md"],
    "pictures": ["docs/pictures.md", "docs/distributed.md"],
}
PAGES = [page for pages in GROUPS.values() for page in pages]
QUICK = ["--steps", "2", "--batch-size", "8", "--backbone", "vit_pico", "--precision", "fp32"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def place(photos, few_creatures, tmp_path, monkeypatch):
    """A working folder as the examples assume it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    (tmp_path / "labelled").symlink_to(photos)
    Image.new("RGB", (64, 48), (90, 120, 30)).save("photo.jpg")
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=0
    )
    torch.save({"model": {**net.state_dict(), "mask_token": torch.zeros(1)}}, "mae_pretrain.pth")
    return tmp_path


def write_own_files(place: Path) -> None:
    """The examples that are files: their first line names them."""
    for page in PAGES:
        for code in blocks(page, "python"):
            first = code.partition("\n")[0]
            if first.startswith("# ") and first.endswith(".py"):
                (place / first.removeprefix("# ")).write_text(code)


@pytest.mark.long
@pytest.mark.parametrize("group", list(GROUPS))
def test_commands_run(group, place):
    """The same commands, only shorter."""
    write_own_files(place)
    seen = 0
    for page in GROUPS[group]:
        for line in "".join(blocks(page, "bash")).splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "nolabel":
                continue
            seen += 1
            quick = []
            if "--steps" in words and words[1] in ("pretrain", "ablate"):
                words[words.index("--steps") + 1] = "2"
            if words[1] == "pretrain" and "--minutes" in words:
                at = words.index("--minutes")
                del words[at : at + 2]
            if words[1] == "pretrain":
                quick = QUICK if "--steps" not in words else QUICK[2:]
                if any(".py:" in word for word in words[3:]):  # a network of one's own
                    quick = [w for w in quick if w not in ("--backbone", "vit_pico")]
                quick = [*quick, "--local-crops", "2"] if "dino" in words else quick
            if words[1] == "ablate":
                quick = ["--backbone", "vit_pico", "--batch-size", "8"]
            assert cli.main([*words[1:], *quick]) == 0, line
    assert seen >= 2


def test_every_page_with_commands_is_read():
    pages = {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")} | {"README.md"}
    commands = {p: re.findall("^nolabel ", "".join(blocks(p, "bash")), re.M) for p in pages}
    assert {p for p in pages if commands[p]} <= set(PAGES)
    assert sum(map(len, commands.values())) >= 25


def commands_named(page: Path) -> set[tuple[str, ...]]:
    """Commands that a page names in its text, or shows without running them."""
    text = re.sub(r"```(?!sh).*?```", "", page.read_text(), flags=re.DOTALL)
    shown = re.findall(r"`(nolabel [^`]+)`", text.replace("\n", " "))
    shown += re.findall(r"^nolabel .*", text, re.MULTILINE)
    return {tuple(shlex.split(line, comments=True)[1:]) for line in shown}


def test_commands_that_a_page_names_exist_with_their_flags(capsys):
    """In the pages for beginners; those in bash blocks are run by `test_commands_run`."""
    pages = ("start", "report", "size-and-time", "domains", "troubleshooting", "gpu")
    seen = set().union(*(commands_named(ROOT / "docs" / f"{p}.md") for p in pages))
    known = {}
    for verb, *rest in sorted(seen):
        assert verb in cli.VERBS, verb
        used = {word for word in rest if word.startswith("--")}
        what = () if not rest or rest[0].startswith("-") or "/" in rest[0] else (rest[0],)
        if verb not in ("evaluate", "show", "bench", "pretrain"):
            what = ()
        if used and (verb, what) not in known:
            asked = "--help-all" if verb == "pretrain" else "--help"
            with contextlib.suppress(SystemExit):
                cli.main([verb, *what, asked])
            known[verb, what] = capsys.readouterr().out
        for flag in used:
            assert re.search(rf"{flag}(?![\w-])", known[verb, what]), (verb, flag)
    assert len(seen) >= 20


def test_every_page_is_in_the_index_and_every_link_leads_somewhere():
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text()
    for page in (ROOT / "README.md", *docs.glob("*.md")):
        if page.parent == docs and page.name != "README.md":
            assert f"({page.name})" in index, page.name
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            if "://" in path:
                continue
            place = page.parent / path if path else page
            assert place.exists(), (page.name, link)
            if anchor:
                headings = re.findall(r"^#+ (.*)", place.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
                assert anchor in slugs, (page.name, link)


@pytest.mark.long
def test_python_examples_run(place, capsys):
    import nolabel

    write_own_files(place)
    examples = [code for page in PAGES for code in blocks(page, "python")]
    assert len(examples) >= 3
    for code in examples:
        exec(compile(code, "example", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert nolabel.__doc__


def test_the_design_names_modules_that_exist():
    """Paths in backticks that begin with a package, such as `engine/monitor/doctor`."""
    source = ROOT / "src" / "nolabel"
    packages = "|".join(p.name for p in source.iterdir() if (p / "__init__.py").is_file())
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(rf"`((?:{packages})/[\w/.]*)`", text))
    there = {n for n in named if any((source / f"{n}{end}").exists() for end in ("", ".py"))}
    missing = {n for n in named - there if not (ROOT / n).exists()}
    assert len(named) > 40
    assert not missing


def test_the_tree_of_the_design_names_every_module():
    """Of packages whose files are listed in words (methods, recipes), only the others are named."""
    text = (ROOT / "docs" / "design.md").read_text()
    tree = text[text.index("### The tree") : text.index("### Rules")]
    source = ROOT / "src" / "nolabel"
    named = {w.removesuffix(".py") for w in re.findall(r"[\w.]+", tree)}
    entries = {e.replace("-", "_") for e in (*methods.METHODS, *PICTURES, *PROTOCOLS)}
    in_words = {"__init__", *(p.stem for p in source.glob("_[fuv]*/*.py"))}
    assert {p.stem for p in source.rglob("*.py")} <= named | entries | in_words


def test_makefile_has_the_two_commands_of_the_readme():
    text = (ROOT / "Makefile").read_text()
    for command in ("demo", "check", "test", "lint", "setup", "bench"):
        assert f"\n{command}:" in text


def test_the_quick_tests_touch_every_package():
    listed = (ROOT / "tests" / "quick.txt").read_text().split()
    packages = {p.parent.name for p in (ROOT / "src" / "nolabel").glob("[a-z]*/__init__.py")}
    assert packages <= {Path(line).parts[1] for line in listed}


@pytest.mark.parametrize(("what", "most"), [
    ("the page and what it imports itself", 1000), ("the same with the loop", 1700),
])  # fmt: skip
def test_what_a_reader_of_dino_opens_is_short(what, most, monkeypatch):
    """Counted from the imports by tools/figures.py; network, errors and bounds are not counted."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    figures = importlib.import_module("figures")
    files = figures.module_files(ROOT / "src")
    modules = figures.reading(files, figures.graph(files, at_start_only=True))[what]
    assert figures.DINO in modules
    assert figures.lines(modules, files) <= most


def test_every_test_that_the_page_of_foreign_files_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/foreign-files.md").read_text()))
    text = "".join(p.read_text("utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 30
    assert named <= set(re.findall(r"def (test_\w+)\(", text))
