"""Every command and example in the README and the documentation runs."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from nolabel import cli

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
    """Counted from the imports by tools/figures.py; the network and the errors are not counted."""
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
