"""Encoders of a user's own network: saved with their code, loaded from it, and only if trusted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import nolabel as nl
from nolabel import _usercode, backbones
from nolabel.encoders.file import save_encoder
from nolabel.errors import FileDamaged, UntrustedCode, UsageError

NET = """
import pathlib
import sys

from torch import nn

pathlib.Path("executed").touch()


class Net(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 4, 4)

    def forward(self, x):
        return self.conv(x)
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """A user who has not run any code yet, in a process that has executed none."""
    monkeypatch.setenv("NOLABEL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(_usercode.loading, "_FILES", {})
    monkeypatch.chdir(tmp_path)


def forget(monkeypatch, tmp_path, name="another"):
    """As another user in another process."""
    monkeypatch.setenv("NOLABEL_STATE", str(tmp_path / name))
    monkeypatch.setattr(_usercode.loading, "_FILES", {})
    (tmp_path / "executed").unlink(missing_ok=True)


def saved(tmp_path, name="net.py", text=NET):
    """An encoder file in a folder of its own, and its features of noise."""
    (tmp_path / name).write_text(text)
    net = backbones.build(backbones.own.name_by_hash(f"{name}:Net"), image_size=32)
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    save_encoder(
        folder / "encoder.safetensors", net, branch="encoder", method="simclr",
        mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32, run=None,
    )  # fmt: skip
    return folder, net.eval()(images()).detach()


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_encoder_is_built_from_the_copy_when_the_original_is_gone(
    tmp_path, monkeypatch, capsys
):
    folder, z = saved(tmp_path)
    (copy,) = (folder / "code").iterdir()
    assert copy.read_text() == NET
    (tmp_path / "net.py").unlink()
    monkeypatch.setattr(_usercode.loading, "_FILES", {})  # as in another process of this user
    encoder = nl.load(folder)
    torch.testing.assert_close(encoder.embed(images()), z)
    assert encoder.backbone.can == {"any_size", "patches"}


def test_code_of_somebody_else_is_executed_only_if_that_is_said(tmp_path, monkeypatch):
    folder, z = saved(tmp_path)
    forget(monkeypatch, tmp_path)
    for spec in (folder, folder / "encoder.safetensors", f"random:{folder}"):
        with pytest.raises(UntrustedCode, match=r"Read it.*--trust-code"):
            nl.load(spec)
    assert not (tmp_path / "executed").exists()
    torch.testing.assert_close(nl.load(folder, trust_code=True).embed(images()), z)
    assert (tmp_path / "executed").exists()
    monkeypatch.setattr(_usercode.loading, "_FILES", {})
    nl.load(folder)  # it was allowed once: the same bytes may be executed again


def test_an_equal_original_does_not_make_code_trusted(tmp_path, monkeypatch):
    """The sender of a folder can also send the file that the folder names."""
    folder, _ = saved(tmp_path)
    assert (tmp_path / "net.py").read_text() == NET
    forget(monkeypatch, tmp_path)
    with pytest.raises(UntrustedCode):
        nl.load(folder)


def test_a_changed_copy_is_refused_also_where_code_is_trusted(tmp_path, monkeypatch):
    folder, _ = saved(tmp_path)
    (copy,) = (folder / "code").iterdir()
    copy.write_text(NET + "\nprint('more')\n")
    forget(monkeypatch, tmp_path)
    with pytest.raises(FileDamaged, match="was changed after"):
        nl.load(folder, trust_code=True)
    copy.unlink()
    with pytest.raises(UsageError, match="is missing"):
        nl.load(folder, trust_code=True)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["net.py:Net", "./net.py", "code/net.py:Net"])
def test_a_file_that_names_code_by_a_path_is_refused(tmp_path, monkeypatch, name):
    folder, _ = saved(tmp_path)
    net = backbones.build(backbones.own.name_by_hash("net.py:Net"), image_size=32)
    net.name = name
    save_encoder(
        folder / "encoder.safetensors", net, branch="encoder", method="simclr",
        mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32, run=None,
    )  # fmt: skip
    forget(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="without its hash"):
        nl.load(folder, trust_code=True)
    assert not (tmp_path / "executed").exists()


def test_bytecode_beside_a_copy_is_never_read(tmp_path, monkeypatch):
    """A cache with the copy's time and size would be executed by Python's own import."""
    import importlib._bootstrap_external as cache
    import importlib.util

    folder, _ = saved(tmp_path)
    (copy,) = (folder / "code").iterdir()
    info = copy.stat()
    code = compile("import pathlib\npathlib.Path('evil').touch()\nraise SystemExit", "x", "exec")
    pyc = importlib.util.cache_from_source(str(copy))
    (folder / "code" / "__pycache__").mkdir()
    with open(pyc, "wb") as file:
        file.write(cache._code_to_timestamp_pyc(code, int(info.st_mtime), info.st_size))
    monkeypatch.setattr(_usercode.loading, "_FILES", {})
    nl.load(folder)
    assert not (tmp_path / "evil").exists()


def test_two_files_of_one_name_live_side_by_side(tmp_path):
    first, a = saved(tmp_path)
    text = NET.replace("return self.conv(x)", "return -self.conv(x)")
    (tmp_path / "there").mkdir()
    second, b = saved(tmp_path, "there/net.py", text)
    assert len(list((first / "code").iterdir())) == 2
    torch.testing.assert_close(nl.load(second).embed(images()), b)
    assert "net" not in sys.modules


def test_a_file_beside_it_that_is_imported_is_refused(tmp_path):
    (tmp_path / "helpers.py").write_text("WIDTH = 8\n")
    for line in ("import helpers", "from helpers import WIDTH", "from . import helpers"):
        (tmp_path / "net.py").write_text(f"{line}\n{NET}")
        with pytest.raises(UsageError, match=r"stand alone: move what it needs into it"):
            backbones.build("net.py:Net", image_size=32)


def test_an_original_that_changed_or_is_gone_is_said_once(tmp_path, capsys):
    saved(tmp_path)
    name = backbones.own.name_by_hash("net.py:Net")
    kept = _usercode.records({"backbone": name})
    (tmp_path / "net.py").write_text("# another")
    for _ in range(2):
        _usercode.admit(name, tmp_path / "out", kept)
    printed = capsys.readouterr().err
    assert printed.count("has changed since it was copied") == 1 and "code/net-" in printed


def test_a_network_given_in_python_is_loaded_with_it_and_refused_without(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 4, 4)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    net = backbones.build(backbones.own.register(Own, "object:Elsewhere"), image_size=32)
    save_encoder(
        tmp_path / "encoder.safetensors", net, branch="encoder", method="simclr",
        mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32, run=None,
    )  # fmt: skip
    z = net.eval()(images()).detach()
    backbones.own._REGISTERED.pop("object:Elsewhere")
    with pytest.raises(UsageError, match=r"load\(folder, backbone=network\)"):
        nl.load(tmp_path)
    for network in (Own, Own()):
        torch.testing.assert_close(nl.load(tmp_path, backbone=network).embed(images()), z)
    with pytest.raises(FileDamaged, match="does not fit"):
        nl.load(tmp_path, backbone=torch.nn.Conv2d(3, 8, 4, 4))
    with pytest.raises(UsageError, match="built from its name"):
        nl.load("random:vit_pico", backbone=Own)


def test_the_header_says_which_code_and_not_where_it_lay(tmp_path):
    folder, _ = saved(tmp_path)
    header = nl.encoders.read_header(folder / "encoder.safetensors")
    ((copy, record),) = header["code"].items()
    assert (folder / copy).is_file() and set(record) == {"sha256"}
    assert header["name"].startswith("net.py:Net@" + record["sha256"][:12])
    assert str(tmp_path) not in json.dumps(header)


def test_a_process_elsewhere_loads_it(tmp_path):
    folder, z = saved(tmp_path)
    (tmp_path / "net.py").unlink()
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import sys, torch, nolabel as nl\n"
        "x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "print(float(nl.load(sys.argv[1]).embed(x).sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=tmp_path / "elsewhere",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) == pytest.approx(float(z.sum()), rel=1e-4)
