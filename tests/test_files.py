"""Places of results are checked before the work; what a killed process left is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from nolabel import cli
from nolabel._files import abandoned, atomic, check_file, check_folder, scratch_folder, write_mark
from nolabel._files.abandoned import ABANDONED, temporary_name
from nolabel.errors import UsageError


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("dear")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for place in ("file", "file/run", "nowhere", "nowhere/run"):
        with pytest.raises(UsageError, match=r"cannot be written: .*(file|link).*Give another"):
            check_folder(tmp_path / place)
    for place in ("file/x.json", "nowhere/x.json"):
        with pytest.raises(UsageError, match="--json .* cannot be written"):
            check_file(tmp_path / place, "--json")
    with pytest.raises(UsageError, match="is a folder. Give a file"):
        check_file(tmp_path, "--json")
    check_folder(tmp_path / "new" / "run")
    check_file(tmp_path / "new" / "x.json")
    check_file(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "nowhere"]  # nothing was made


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="--out .*new/run cannot be written: no permission"):
        check_folder(tmp_path / "new" / "run")
    with pytest.raises(UsageError, match="^/.* no permission"):  # no flag names a run to resume
        check_folder(tmp_path, "")


@pytest.mark.parametrize("line", [
    "pretrain mae --data PHOTOS --steps 2 --out FILE", "scan --data PHOTOS --out FILE/x",
    "pack --data PHOTOS --out FILE", "embed --encoder pixels --data PHOTOS --out FILE/x.npy",
    "show neighbours --encoder pixels --data PHOTOS --out FILE", "demo --out FILE",
    "export --encoder random:vit_pico --to timm --out FILE",
    "worth --data PHOTOS --labels PHOTOS --out FILE",
    "evaluate knn --encoder pixels --train PHOTOS --json FILE/x.json",
    "evaluate finetune --encoder random:vit_pico --train PHOTOS --save FILE",
    "pretrain mae --data PHOTOS --steps 2 --dry-run --json FILE/x.json",
])  # fmt: skip
def test_every_verb_refuses_a_place_that_is_a_file_before_it_works(line, photos, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("dear")
    words = line.replace("PHOTOS", str(photos)).replace("FILE", str(file)).split()
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert "cannot be written" in err
    assert not out
    assert file.read_text() == "dear"


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def left_behind(path, process, *, age=ABANDONED + 5, folder=False):
    """A file or folder under the temporary name that another process gave."""
    name = temporary_name(path.name).replace(f".{os.getpid()}-", f".{process}-")
    place = path.with_name(name)
    if folder:
        place.mkdir()
        write_mark(place, "scratch")
    else:
        place.write_text("half")
    for p in (*place.rglob("*"), place) if folder else (place,):
        os.utime(p, (time.time() - age,) * 2)
    return place


def test_the_next_writer_removes_the_file_that_a_killed_one_left(tmp_path, ended):
    target = tmp_path / "encoder.safetensors"
    hidden = tmp_path / ".encoder.safetensors"
    dead = left_behind(hidden, ended)
    alive = left_behind(hidden, os.getppid())
    fresh = left_behind(hidden, ended, age=0)  # its process may be in another container
    foreign = tmp_path / ".encoder.safetensors.12.tmp"
    foreign.write_text("somebody's")
    with atomic(target) as file:
        file.write(b"whole")
    assert not dead.exists()
    assert alive.exists() and fresh.exists() and foreign.exists()
    assert target.read_bytes() == b"whole"


def test_the_next_export_removes_the_folder_that_a_killed_one_left(tmp_path, ended):
    dead = left_behind(tmp_path / ".nolabel-export", ended, folder=True)
    alive = left_behind(tmp_path / ".nolabel-export", os.getppid(), folder=True)
    other = left_behind(tmp_path / ".nolabel-export", ended, folder=True)
    (other / ".nolabel").unlink()  # not known to be nolabel's own
    os.utime(other, (time.time() - 2 * ABANDONED,) * 2)
    with scratch_folder(tmp_path, "export") as folder:
        (folder / "model").write_text("x")
        assert not dead.exists()
    assert not folder.exists()
    assert alive.exists() and other.exists()


def test_a_temporary_folder_is_removed_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path, "export") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert not any(tmp_path.iterdir())


def test_a_link_with_a_temporary_name_is_left_alone(tmp_path, ended):
    (tmp_path / "mine").mkdir()
    name = temporary_name(".nolabel-export").replace(f".{os.getpid()}-", f".{ended}-")
    (tmp_path / name).symlink_to(tmp_path / "mine")
    assert abandoned.abandoned(tmp_path, ".nolabel-export") == []
