"""The report: its verdicts, one offline file, and its behaviour in an installed browser."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nolabel as nl
from nolabel.cli import main
from nolabel.engine.monitor.metrics import read_metrics
from nolabel.engine.monitor.snapshots import read_snapshots
from nolabel.engine.resolve import diff_from_recipe
from nolabel.errors import UsageError
from nolabel.pictures._tiles import sheet
from nolabel.tools.report.curves import CURVES, curves
from nolabel.tools.report.packing import without_ground
from nolabel.tools.report.page import BUDGET, again, build_report
from nolabel.tools.report.snapshots import cosine_error, quantised, script_json
from nolabel.tools.report.trial import trial
from nolabel.tools.report.verdict import chosen, result, three_numbers, verdict
from nolabel.tools.show import draw_missing

HOSTILE = "<img src=x onerror=alert(1)>"


def rows(trained, pixels, random):
    def row(name, value):
        return {"encoder": name, "setting": "k=20", "metric": "top1", "value": value,
                "low": value - 0.02, "high": value + 0.02}  # fmt: skip

    return [row("pixels", pixels), row("random:x", random), row("x", trained)]


@pytest.mark.parametrize(
    ("table", "metrics", "word"),
    [
        (rows(0.7, 0.4, 0.2), [{"step": 1, "feature_std": 0.9}], "Learned"),
        (rows(0.41, 0.4, 0.2), [{"step": 1, "feature_std": 0.9}], "Inconclusive"),
        (rows(0.29, 0.4, 0.2), [{"step": 1, "feature_std": 0.9}], "Not yet: below pixels"),
        (rows(0.39, 0.4, 0.2), [{"step": 1, "feature_std": 0.9}], "Not yet: not above pixels"),
        (
            rows(0.7, 0.4, 0.2),
            [{"step": s, "feature_std": 0.01} for s in (20, 60, 90)],
            "Collapsed",
        ),
        ([], [{"step": 1, "feature_std": 0.9, "effective_rank": 9.0}], "Not measured"),
        ([], [{"step": 1, "feature_std": 0.9, "probe_knn": 0.25}], "Not compared: k-NN"),
        ([], [], "Not measured"),
    ],
)
def test_the_verdict_says_what_the_numbers_say(table, metrics, word):
    assert verdict(table, metrics).startswith(word)


def test_the_verdict_never_advises_a_longer_run_and_none_at_once():
    flat = [{"step": 100 * i, "loss": 1.0, "probe_knn": 0.4} for i in range(1, 10)]
    said = verdict(rows(0.3, 0.4, 0.2), flat, 900)
    assert said.startswith("Not yet") and "Stopped improving" in said
    assert "longer run" not in said
    assert "of step 100." in said  # where the best probe was
    rising = [{**line, "probe_knn": 0.1 + 0.01 * i} for i, line in enumerate(flat)]
    assert "longer run" in verdict(rows(0.3, 0.4, 0.2), rising, 900)


def test_the_report_is_one_offline_file_that_trusts_no_text(tiny_run):
    run = tiny_run("dino", log_every=1)
    bad = f"</script>{HOSTILE}"
    row = {"encoder": bad, "setting": "k=20", "metric": "top1", "value": 0.5, "low": None,
           "high": None}  # fmt: skip
    (run.folder / "comparison.json").write_text(json.dumps({"rows": [row]}))
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "loss": null}\n{"step": 100, "lo')  # NaN, and cut short
    page = build_report(run.folder).read_text()
    assert bad not in page and HOSTILE not in page and "&lt;img" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing to fetch
    assert build_report(run.folder).read_text() == page
    policy = re.search(r'Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    assert ">Training curves</h2>" in page and "nolabel pretrain dino --config" in page


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        build_report(tmp_path)
    assert draw_missing(tmp_path) == []


def test_what_departs_from_the_recipe_is_listed_with_what_the_recipe_says(tiny_run):
    run = tiny_run("simclr", temperature=0.37, lr=0.0123)
    found = {name: (own, told) for name, own, told in diff_from_recipe(run)}
    assert found["temperature"][0] == 0.37 != found["temperature"][1]
    assert found["optim.lr"][0] == 0.0123
    page = build_report(run.folder).read_text()
    assert "<td>temperature</td><td>0.37</td>" in page
    plain = dataclasses.replace(
        run,
        options=dataclasses.replace(
            run.options, **{k: told for k, (_, told) in found.items() if "." not in k}
        ),
        optim=dataclasses.replace(
            run.optim, **{k[6:]: told for k, (_, told) in found.items() if "." in k}
        ),
    )
    assert diff_from_recipe(plain) == []


def test_looks_are_kept_before_and_while_it_learns_and_the_last_is_the_encoder(tiny_run):
    run = tiny_run("dino", steps=8)
    pixels, seen = read_snapshots(run.folder)
    assert [step for step, _ in seen] == list(range(9)) and pixels.shape == (4, 32, 32, 3)
    encoder = nl.load(run.folder)
    with encoder.evaluating():
        t = encoder.backbone.tokens(encoder.prepare(pixels))
    z = t.patches / t.patches.norm(dim=-1, keepdim=True)
    kept = (
        seen[-1][1]["patches"].astype(np.float32).reshape(4, -1, seen[-1][1]["patches"].shape[-1])
    )
    ours = kept.reshape(-1, kept.shape[-1])
    theirs = z.flatten(0, 1).numpy()
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=5e-3)
    a = encoder.attention(encoder.prepare(pixels)).mean(1).numpy()
    np.testing.assert_allclose(seen[-1][1]["attention"].reshape(4, -1), a, atol=1e-3)
    third = run.folder / "film" / "step-000000003.npz"
    whole = third.read_bytes()
    for damaged in (b"cut", whole[: len(whole) // 2], b""):
        third.write_bytes(damaged)
        assert read_snapshots(run.folder) is None  # and the report does without
    assert "touch" not in build_report(run.folder).read_text().split("</style>")[1]


def test_eight_bits_keep_the_cosines_and_say_how_well():
    z = np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32)
    small = quantised(z)
    assert small.dtype == np.int8 and np.abs(small).max() == 127
    assert 0 < cosine_error(z, small) < 0.02
    assert cosine_error(small.astype(np.float32), small) < 1e-12
    assert json.loads(script_json({"a": "</script>"})) == {"a": "</script>"}
    assert "</" not in script_json({"a": "</script>"})


def test_curves_carry_their_numbers_their_warm_up_and_where_they_were_resumed():
    lines = [{"step": s, "loss": 1 / s, "lr": 0.1} for s in range(1, 11)]
    lines[6]["resumed_at"] = 6
    drawn = curves(lines, warmup_steps=3)
    assert 'data-key="loss" data-first="1.0" data-last="0.1"' in drawn
    assert 'class="warm"' in drawn and "resumed at step 6" in drawn
    assert drawn.count('class="resumed"') == 2  # in both curves
    assert "Too few lines" in curves(lines[:1])
    broken = [{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}, {"loss": 3.0}]
    assert "Too few lines" in curves(broken)


def test_pictures_beyond_the_budget_are_compressed(tiny_run):
    run = tiny_run("simclr")
    folder = run.folder / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    path = build_report(run.folder)
    assert path.stat().st_size < 5_000_000 < (folder / "noise.png").stat().st_size
    assert BUDGET < 5_000_000


def test_the_command_draws_what_is_missing_and_says_what_it_cannot(tiny_run, photos, capsys):
    run = tiny_run("mae")
    assert main(["report", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text()
    for name in ("attention", "pca", "neighbours", "tsne", "reconstruct-75"):
        assert f'alt="{name}' in page, name
    before = (run.folder / "pictures" / "pca.png").stat().st_mtime_ns
    assert main(["report", str(run.folder)]) == 0
    assert (run.folder / "pictures" / "pca.png").stat().st_mtime_ns == before
    shutil.rmtree(run.folder / "pictures")
    assert main(["report", str(run.folder), "--data", "nowhere"]) == 2
    assert "No folder or named set 'nowhere'" in capsys.readouterr().err
    config = run.folder / "config.yaml"
    text = config.read_text().replace(f"data: {run.settings.data}\n", "data: nowhere\n")
    config.write_text(text)
    assert "data: nowhere" in text
    assert main(["report", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text()
    assert "Not drawn: neighbours" in page and "nowhere" in page
    assert main(["report", str(run.folder), "--no-draw"]) == 0
    assert "Not drawn" not in (run.folder / "report.html").read_text()


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    found = next((p for p in map(shutil.which, ("chromium", "google-chrome")) if p), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a file; anything but silence on the network and the console fails the test."""
    pages = []

    def open_(path, **context):
        page = browser.new_context(**context).new_page()
        wrong = []
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith("data:") else None)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("dialog", lambda d: wrong.append(f"dialog {d.message}"))
        page.goto(path.as_uri())
        pages.append((page, wrong, path.as_uri()))
        return page

    yield open_
    for page, wrong, own in pages:
        assert [w for w in wrong if w != own] == []
        page.context.close()


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run on a folder whose classes have hostile names, and its report; only to be looked at."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for name in (HOSTILE, "'\"&amp;"):
        folder = tmp_path / "labelled" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
                folder / f"{i}.png"
            )
    run = nl.pretrain(
        "dino", data=str(tmp_path / "labelled"), out=tmp_path / "run", quiet=True, steps=6,
        batch_size=8, backbone="vit_pico", image_size=32, workers=0, log_every=1,
        prototypes=16, hidden=16, bottleneck=8, local_size=16,
    )  # fmt: skip
    notes = draw_missing(run.folder)
    assert notes == []
    (run.folder / "comparison.json").write_text(json.dumps({"rows": rows(0.7, 0.4, 0.2)}))
    return run, build_report(run.folder)


def test_a_browser_finds_every_number_of_the_metrics_and_nothing_else_to_say(opened, hostile_run):
    run, path = hostile_run
    page = opened(path)
    metrics = read_metrics(run.folder / "metrics.jsonl")
    found = page.eval_on_selector_all(
        "small[data-key]", "all => all.map(e => [{...e.dataset}, e.textContent])"
    )
    assert {f["key"] for f, _ in found} >= {"loss", "lr", "feature_std", "data_wait"}
    for data, text in found:
        own = [m[data["key"]] for m in metrics if m.get(data["key"]) is not None]
        assert [float(data[k]) for k in ("first", "last", "low", "high")] == [
            own[0], own[-1], min(own), max(own)
        ]  # fmt: skip
        assert f"{own[-1]:.4g}" in text and dict(CURVES)[data["key"]] in text
    assert page.locator("table").first.inner_text().count("70.0%") == 1
    assert page.locator("img[src=x]").count() == 0
    assert (
        page.title() == f"nolabel: dino on {Path(run.settings.data).name}"
        and page.locator("h2").count() >= 5
    )
    for image in page.locator("img").all():
        assert image.evaluate("i => i.complete && i.naturalWidth > 0") and image.get_attribute(
            "alt"
        )


def test_pointing_at_a_patch_shows_the_cosines_of_the_film(opened, hostile_run):
    run, path = hostile_run
    page = opened(path)
    page.wait_for_selector("#touch[data-state=ready]")
    pixels, seen = read_snapshots(run.folder)
    look = seen[-1][1]["patches"].astype(np.float32)
    n, h, w, k = look.shape
    z = quantised(look.reshape(n, h * w, k)).astype(np.float64)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    canvas = page.locator("#touch canvas")
    assert canvas.count() == n == 4
    for i, (x, y) in ((0, (1, 2)), (2, (w - 1, 0)), (3, (3, h - 1))):
        area = canvas.nth(i).bounding_box()
        canvas.nth(i).scroll_into_view_if_needed()
        area = canvas.nth(i).bounding_box()
        page.mouse.move(area["x"] + (x + 0.5) * area["width"] / w,
                        area["y"] + (y + 0.5) * area["height"] / h)  # fmt: skip
        page.wait_for_selector(f'#touch[data-patch="{i}:{y * w + x}"]')
        cosines = z @ z[i, y * w + x]
        v = (cosines - cosines.min()) / max(1 - cosines.min(), 1e-6)
        other, patch = 1, (h // 2) * w + 1  # one of an image that is not pointed at
        side = canvas.nth(other).evaluate("c => c.width")
        at = [patch % w * side // w + 9, patch // w * side // h + 9]
        drawn = canvas.nth(other).evaluate(
            "(c, at) => [...c.getContext('2d').getImageData(at[0], at[1], 1, 1).data]", at
        )
        strength = v[other, patch]
        alpha = 235 * strength**2 / 255
        own = pixels[other, (at[1] * 2 + 1) * 16 // side, (at[0] * 2 + 1) * 16 // side].astype(
            float
        )
        expected = own * (1 - alpha) + np.array([255, 200 * (1 - strength), 0]) * alpha
        assert np.abs(np.array(drawn[:3]) - expected).max() <= 4
    canvas.nth(1).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f'#touch[data-patch="1:{(h // 2) * w + w // 2 - 1}"]')


def test_a_click_holds_the_patch_until_the_next(opened, hostile_run):
    _, path = hostile_run
    page = opened(path)
    page.wait_for_selector("#touch[data-state=ready]")
    canvas = page.locator("#touch canvas").first
    canvas.scroll_into_view_if_needed()
    canvas.click(position={"x": 5, "y": 5})
    held = page.locator("#touch").get_attribute("data-patch")
    canvas.hover(position={"x": 150, "y": 150})
    assert page.locator("#touch").get_attribute("data-patch") == held == "0:0"
    canvas.click(position={"x": 150, "y": 150})
    assert page.locator("#touch").get_attribute("data-patch") != held


def test_it_is_dark_where_people_want_it_dark_prints_and_fits_a_telephone(opened, hostile_run):
    _, path = hostile_run
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (opened(path, color_scheme=c) for c in ("light", "dark"))
    assert light.evaluate(colour) == "rgb(255, 255, 255)" != dark.evaluate(colour)
    assert light.pdf().startswith(b"%PDF")
    small = opened(path, viewport={"width": 390, "height": 800})
    small.wait_for_selector("#touch[data-state=ready]")
    assert small.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("how", ["crashed", "resumed", "one step", "no film", "ResNet"])
def test_runs_that_went_otherwise_have_a_report_too(opened, tiny_run, how):
    run = tiny_run("simclr", steps=1 if how == "one step" else 6, log_every=1,
                   backbone="resnet_nano" if how == "ResNet" else "vit_pico")  # fmt: skip
    folder = run.folder
    if how == "crashed":
        for path in (folder / "checkpoints").iterdir():
            path.unlink()
        (folder / "encoder.safetensors").unlink()
        metrics = folder / "metrics.jsonl"
        metrics.write_text(metrics.read_text()[:-40])
        assert any("pca" in note for note in draw_missing(folder))
    if how == "resumed":
        lines = read_metrics(folder / "metrics.jsonl")
        lines[3]["resumed_at"] = 3
        (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    if how == "no film":
        shutil.rmtree(folder / "film")
    page = opened(build_report(folder))
    text = page.inner_text("body")
    assert "Not measured" in text and "Training curves" in text
    assert ("Similarity of patches" in text) == (how != "no film")
    assert ("resumed at step 3" in text) == (how == "resumed")
    assert ("Too few lines" in text) == (how == "one step")


def test_a_script_that_was_changed_does_not_run(browser, tiny_run):
    path = build_report(tiny_run("simclr").folder)
    tampered = path.with_name("tampered.html")
    tampered.write_text(path.read_text().replace('dataset.state = "ready"', 'dataset.state = "x"'))
    page = browser.new_page()
    said = []
    page.on("console", lambda m: said.append(m.text))
    page.goto(tampered.as_uri())
    page.wait_for_timeout(300)
    assert page.locator("#touch canvas").count() == 0
    assert any("Content Security Policy" in text for text in said)
    page.goto(path.as_uri())
    page.wait_for_selector("#touch[data-state=ready]")
    page.close()


def percentages(text):
    return {float(v) for v in re.findall(r"(-?[0-9.]+) ?%", text)}


def test_every_number_that_a_person_reads_is_the_protocols_result(tiny_run, capsys, photos):
    """Terminal, JSON, the run's report (verdict, large numbers, table) and Python's table."""
    run = tiny_run("dino", log_every=1)
    names = [str(run.folder), "pixels", f"random:{run.folder}"]
    out = run.folder / "table.json"
    assert main(["compare", *names, "--train", str(photos), "--json", str(out)]) == 0
    terminal = capsys.readouterr().out
    table = json.loads(out.read_text())
    best = {r["encoder"]: r["best"] for r in table["reports"]}
    assert len(table["rows"]) > len(best)  # other settings are there to be mistaken for it
    own, *rivals = (best[r["encoder"]] for r in table["reports"])
    rival = max(rivals, key=lambda r: r["value"])
    # Each encoder has one line, with its interval and chance.
    lines = [line for line in terminal.splitlines() if " knn " in line]
    assert len(lines) == 3
    for line, row in zip(lines, (own, *rivals), strict=True):
        assert f"{row['value']:.2%}" in line and row["setting"] in line
        assert line.endswith(f"{row['chance']:.1%}")
    kept = json.loads((run.folder / "comparison.json").read_text())
    assert [r["best"] for r in kept["reports"]] == [own, *rivals]
    page = build_report(run.folder).read_text()
    said = html.unescape(re.search(r'<p class="verdict[^"]*">(.*?)</p>', page)[1])
    wanted = {round(100 * own["value"], 1), round(100 * rival["value"], 1)}
    assert wanted <= percentages(said)
    points = f"{100 * (own['value'] - rival['value']):+.1f}"
    assert f"{points} points" in said
    numbers = re.findall(r"<div><b>(.*?)</b>", page)
    assert numbers == [f"{own['value']:.1%}", f"{rival['value']:.1%}", points]
    first = re.search(r"<table>(.*?)</table>", page, re.S)[1]
    values = re.findall(r'top1</td><td class="n">([0-9.]+%)</td>', first)
    assert values == [f"{r['value']:.1%}" for r in (own, *rivals)]


def test_the_headline_is_the_marked_row_of_this_run_and_of_its_best_baseline():
    table = [
        {"encoder": name, "protocol": p, "setting": f"k={k}", "metric": "top1", "value": v,
         "best": k == 20}
        for name, p, k, v in [
            ("runs/d", "linear", 20, 0.5), ("runs/d", "knn", 20, 0.86), ("runs/d", "knn", 200, 0.8),
            ("runs/other", "knn", 20, 0.99), ("pixels", "knn", 20, 0.38),
            ("pixels", "knn", 200, 0.9), ("random:runs/d", "knn", 20, 0.2),
        ]
    ]  # fmt: skip
    assert [r["value"] for r in chosen(table)] == [0.5, 0.86, 0.99, 0.38, 0.2]
    found = result(table, "runs/d")
    assert (found.own["value"], found.rival["value"]) == (0.86, 0.38)
    assert [n for n, _ in three_numbers(table, [], "somewhere/else/d")] == [
        "86.0%",
        "38.0%",
        "+48.0",
    ]


def test_the_command_to_repeat_a_run_works_from_where_the_report_was_made(
    tiny_run, photos, tmp_path, monkeypatch
):
    run = tiny_run("simclr")
    folder = tmp_path / "my runs" / "d"
    shutil.copytree(run.folder, folder)
    monkeypatch.chdir(tmp_path)
    line = again((folder / "config.yaml").read_text(), Path("my runs/d"))
    words = shlex.split(line)
    assert words[0] == "nolabel" and main([*words[1:], "--dry-run"]) == 0
    assert line in html.unescape(build_report(Path("my runs/d")).read_text())


def test_grounds_are_transparent_and_tiles_are_untouched():
    tile = np.full((64, 64, 3), 255, np.uint8)  # white inside, as a drawing on white paper
    tile[0] = tile[-1] = tile[:, 0] = tile[:, -1] = (10, 10, 10)
    drawn = sheet([[tile, tile]], titles=("one", "two"), side=64)
    out = without_ground(drawn)
    assert (out[:, :4, 3] == 0).all() and (out[..., 3] > 0).any()
    top = 26
    assert (out[top : top + 64, 8:72, 3] == 255).all()
    assert np.array_equal(out[top : top + 64, 8:72, :3], drawn[top : top + 64, 8:72])
    title = out[:18]
    assert set(title[..., 0][title[..., 3] > 0]) == {128}  # readable on white and on black
    photo = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    assert (without_ground(photo)[..., 3] == 255).all()


def test_a_loss_that_may_rise_is_explained(tiny_run):
    for method, said in (("dino", True), ("simclr", False)):
        page = build_report(tiny_run(method, method, log_every=1).folder).read_text()
        assert ("entropy of the teacher" in page) is said


def test_a_folder_of_somebody_else_starts_no_interpreter_waits_for_nothing_and_fetches_nothing(
    tiny_run, monkeypatch
):
    run = tiny_run("simclr")
    pictures = run.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    (pictures / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (pictures / "b.png").write_bytes(b"")
    os.mkfifo(pictures / "c.png")
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    config = run.folder / "config.yaml"
    config.write_text(re.sub(r"(?m)^  data: .*", "  data: hf:owner/set", config.read_text()))
    assert "hf:owner/set" in config.read_text()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: started.append(a))
    assert main(["report", str(run.folder)]) == 0
    page = (run.folder / "report.html").read_text()
    assert "Damaged, not shown: a.png, b.png, c.png" in page and "on the Hub" in page
    assert not started


def test_the_report_shows_how_the_method_was_chosen():
    result = {"name": "<b>", "steps": 150, "seconds": 70.4, "score": 0.412}
    about = {
        "state": "finished", "choice": "<b>", "judged_by": "k-NN", "candidates": [5],
        "rounds": [{"results": [result, *({**result, k: 10**400} for k in ("steps", "score"))]}, 7],
    }  # fmt: skip
    page = trial(about)
    assert "&lt;b&gt; was chosen, judged by k-NN" in page
    assert "41.2%" in page and page.count("<tr>") == 2
    assert "cut short" in trial({**about, "state": "running"})
    assert trial({}) == trial({"rounds": 3}) == ""
