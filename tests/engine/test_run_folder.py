"""A run's folder: what is in it, and what is never replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nolabel as nl
from nolabel._files import LOCK, MARK, Lock, write_mark
from nolabel.config import Layer
from nolabel.encoders import read_header
from nolabel.encoders.names import absolute_encoder
from nolabel.engine import run_folder, trainer
from nolabel.engine.monitor.probe import Probe
from nolabel.engine.saved_run import load_run
from nolabel.errors import DataError, FileDamaged, UsageError

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the same package
FIXTURE = Path(__file__).parents[1] / "fixtures" / "runs_3f745f9" / "simclr-resnet"


@pytest.fixture
def saved(tmp_path):
    """A run of a fixture, as this version marks it; it may be overwritten."""
    folder = shutil.copytree(FIXTURE, tmp_path / "run")
    for name in ("expected.json", "expected.safetensors"):
        (folder / name).unlink()
    write_mark(folder, "run", saved=True)
    return load_run(folder).with_settings(out=str(folder), overwrite=True)


def test_a_folder_that_holds_a_run_is_never_overwritten_unasked(tiny_run):
    tiny_run()
    with pytest.raises(UsageError, match="--overwrite"):
        tiny_run()
    tiny_run(overwrite=True)


@pytest.mark.parametrize("config", ["", "hydra: 1\n", "method: simclr\nsettings: {}\n"])
def test_overwrite_never_touches_a_folder_that_nolabel_did_not_write(tiny_run, tmp_path, config):
    (tmp_path / "run" / "photos").mkdir(parents=True)
    (tmp_path / "run" / "thesis.txt").write_text("dear")
    (tmp_path / "run" / "config.yaml").write_text(config)
    with pytest.raises(UsageError, match="holds no run"):
        tiny_run(overwrite=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "dear"
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.yaml", "photos", "thesis.txt",
    ]  # fmt: skip


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(saved):
    folder = saved.folder
    mine = ["notes.txt", "pictures/holiday.png", "code/mine.py", "checkpoints/best.pt", ".git/HEAD"]
    for name in mine:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("dear")
    (folder / "pictures" / "pca.png").touch()
    (folder / "pictures" / "numbers.json").write_text('{"pca": {}, "../notes": {}}')
    run_folder.check(saved)
    run_folder.make(saved, None)
    assert all((folder / name).read_text() == "dear" for name in mine)
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert left == {*mine, MARK, "config.yaml", "environment.json"}


def test_a_folder_of_an_older_version_without_a_mark_is_replaced_if_it_holds_nothing_else(saved):
    (saved.folder / MARK).unlink()
    run_folder.check(saved)
    (saved.folder / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds no run"):
        run_folder.check(saved)


def test_no_run_replaces_the_current_folder_or_one_that_holds_the_data(saved, monkeypatch):
    (saved.folder / "below").mkdir()
    run_folder.check(saved)
    with pytest.raises(UsageError, match="holds the data"):
        run_folder.check(saved.with_settings(data=str(saved.folder / "photos" / "*.tar")))
    with pytest.raises(UsageError, match="holds the data"):
        run_folder.check(saved.with_settings(probe=str(saved.folder)))
    for here in (saved.folder, saved.folder / "below"):
        monkeypatch.chdir(here)
        with pytest.raises(UsageError, match="current folder"):
            run_folder.check(saved)


def test_a_file_of_settings_chooses_no_folder_and_replaces_none(saved):
    text = (saved.folder / "config.yaml").read_text()
    (saved.folder / "config.yaml").write_text(text.replace("overwrite: false", "overwrite: true"))
    settings = Layer.from_file(saved.folder / "config.yaml").settings
    assert not {"out", "overwrite", "download"} & settings.keys() and settings["steps"]


def test_one_process_at_a_time_writes_into_a_folder(tmp_path):
    """A lock ends with its process, however that ends, and is not shared with a later one."""
    path = tmp_path / "run" / LOCK
    code = (
        "import sys, time; from pathlib import Path; from nolabel._files import Lock;"
        f"Lock(Path({str(path)!r}), 'it').acquire(); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ENVIRONMENT)
    try:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=rf"Process {other.pid} has been using the run"):
            Lock(path, "the run").acquire()
    finally:
        other.kill()
        other.wait()
    with Lock(path, "the run"), pytest.raises(UsageError, match="using"):
        Lock(path, "the run").acquire()
    assert not path.exists()


def test_a_lock_of_another_machine_counts_until_it_is_no_longer_renewed(tmp_path):
    path = tmp_path / LOCK
    path.write_text('{"host": "node7", "process": 12, "since": "\\u001b[31mnoon"}')
    with pytest.raises(UsageError, match=r"Process 12 on node7 .* since \\x1b\[31mnoon\..*delete"):
        Lock(path, "the run").acquire()
    os.utime(path, (0, 0))
    with Lock(path, "the run"):
        assert "node7" not in path.read_text()


def test_a_run_that_trains_is_neither_resumed_nor_replaced(tiny_run, saved):
    with run_folder.locked(saved.folder):
        with pytest.raises(UsageError, match="using the run"):
            nl.resume(saved.folder, quiet=True)
        with pytest.raises(UsageError, match="using the run"):
            tiny_run(overwrite=True)


def test_a_start_that_fails_does_not_block_the_next(tiny_run, tmp_path, photos, monkeypatch):
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(next(photos.rglob("*.png")), plain)
    with pytest.raises(DataError, match="no labels"):
        tiny_run(probe=str(plain))
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "build_optimiser", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_run()
    assert (tmp_path / "run" / "config.yaml").exists()
    assert (tmp_path / "run" / MARK).exists()
    run_folder.check(tiny_run(steps=1).with_settings(out=str(tmp_path / "new")))


def test_a_run_goes_on_with_its_own_data_from_any_folder(tiny_run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    run = nl.pretrain("simclr", data=photos.name, out=tmp_path / "run", backbone="vit_pico",
                      steps=2, batch_size=8, precision="fp32", workers=0, quiet=True)  # fmt: skip
    assert run.settings.data == str(photos)
    for name in ("elsewhere", "moved"):
        shutil.copytree(photos, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    nl.resume(run.folder, quiet=True)
    nl.resume(run.folder, data="moved", quiet=True)
    one, other = sorted((tmp_path / "elsewhere").rglob("*.png"))[:2]
    one.write_bytes(other.read_bytes())  # as many images, of the same names
    with pytest.raises(DataError, match="other images"):
        nl.resume(run.folder, data="elsewhere", quiet=True)
    one.unlink()
    with pytest.raises(DataError, match="48 images, .* now holds 47"):
        nl.resume(run.folder, data="elsewhere", quiet=True)


def test_a_checkpoint_beyond_the_runs_length_is_refused_and_kept(saved):
    config = saved.folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(f"steps: {saved.settings.steps}\n", "steps: 3\n"))
    with pytest.raises(FileDamaged, match="do not belong together"):
        nl.resume(saved.folder, quiet=True)
    assert len(list((saved.folder / "checkpoints").iterdir())) == 1


def test_a_run_folder_has_all_its_parts_and_the_probe_is_opened_once(tiny_run, photos, monkeypatch):
    opened, open_probe = [], Probe.of
    monkeypatch.setattr(Probe, "of", lambda run: opened.append(run) or open_probe(run))
    run = tiny_run("dino", probe=str(photos), probe_every=2, log_every=1)
    assert len(opened) == 1
    names = {p.name for p in run.folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "environment.json", "checkpoints",
            "encoder.safetensors"} <= names  # fmt: skip
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "lr", "feature_std", "effective_rank", "target_entropy", "target_information",
            "images_per_second", "data_wait"} <= lines[-1].keys()  # fmt: skip
    assert 0 <= lines[-1]["probe_knn"] <= 1


def test_an_encoder_file_tells_no_local_path(tiny_run, photos):
    run = tiny_run("simclr", probe=str(photos), probe_every=2)
    header = json.dumps(read_header(run.folder / "encoder.safetensors"))
    assert photos.name in header
    assert str(photos.parent) not in header and str(run.folder.parent) not in header


def test_a_private_run_gives_no_path_and_no_image_of_its_data_away(tiny_run, photos):
    run = tiny_run("simclr", probe=str(photos), probe_every=2, private=True, log_every=1)
    assert not (run.folder / "film").exists()
    header = json.dumps(read_header(run.folder / "encoder.safetensors"))
    page = nl.report(run.folder).read_text()
    for text in (header, page):
        assert photos.name not in text and str(run.folder.parent) not in text
    assert "private data" in page and "<img" not in page and "Damaged" not in page
    assert "--data with images that may be shown" in page
    assert str(photos) in (run.folder / "config.yaml").read_text()  # to resume from


def test_names_of_other_encoders_mean_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    run = str(tmp_path / "run")
    names = {"run": run, "random:run": f"random:{run}", "pixels": "pixels", "": "", "no": "no",
             "timm:run": "timm:run", "random:vit_pico": "random:vit_pico"}  # fmt: skip
    assert {name: absolute_encoder(name) for name in names} == names
