"""Tiles, labels and colours; the list of pictures and how it is saved."""

from __future__ import annotations

import base64
import html
import importlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from nolabel.errors import UsageError
from nolabel.pictures.picture import Picture

FILMS = ("webp", "mp4")
TILE = 128  # pixels; smaller images are enlarged to this, nearest neighbour
GAP, TITLE = 8, 18
HEAD_COLOURS = np.array(
    [[230, 60, 60], [60, 120, 230], [60, 180, 75], [245, 180, 20], [150, 70, 200], [30, 190, 190]],
    dtype=np.float32,
)


class Pictures:
    """A few pictures with their numbers; shows itself in notebooks, saves itself on request."""

    def __init__(self, items: Sequence[Picture]):
        self.items = tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.items)

    def __getitem__(self, i: int) -> Picture:
        return self.items[i]

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """Name of each picture to the numbers behind it."""
        return {p.name: dict(p.numbers) for p in self.items}

    def save(self, folder: str | Path) -> list[Path]:
        """Writes a PNG and the data (.npz) of each picture, and numbers.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for p in self.items:
            paths.append(folder / f"{p.name}.png")
            Image.fromarray(p.image).save(paths[-1])
            if p.frames is not None:
                paths.append(save_film(folder / f"{p.name}.{p.film}", p.frames))
            if p.data:
                arrays: dict[str, Any] = dict(p.data)
                np.savez_compressed(folder / f"{p.name}.npz", **arrays)
                paths.append(folder / f"{p.name}.npz")
        captions = {p.name: {"caption": p.caption, "numbers": dict(p.numbers)} for p in self.items}
        paths.append(folder / "numbers.json")
        old = json.loads(paths[-1].read_text("utf-8")) if paths[-1].exists() else {}
        paths[-1].write_text(json.dumps({**old, **captions}, indent=2) + "\n", encoding="utf-8")
        return paths

    def _repr_html_(self) -> str:
        return "".join(
            f'<figure><img src="{data_uri(p.image)}" alt="{html.escape(p.name)}">'
            f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
            for p in self.items
        )


def save_film(path: Path, frames: np.ndarray, rate: int = 10) -> Path:
    """Writes frames uint8 [T, H, W, 3] as an endless WebP, or as MP4 (needs the extra `video`).

    Raises:
        UsageError: MP4 without its extra.
    """
    if path.suffix == ".webp":
        first, *others = (Image.fromarray(f) for f in frames)
        first.save(path, save_all=True, append_images=others, duration=1000 // rate, loop=0)
        return path
    try:
        av: Any = importlib.import_module("av")
    except ImportError:
        raise UsageError(
            "MP4 needs its extra: pip install 'nolabel[video]', or use --film webp."
        ) from None
    height, width = (n // 2 * 2 for n in frames.shape[1:3])  # the codec wants even sides
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000
        for f in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(f[:height, :width]), "rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def stacked(made: Sequence[Pictures], names: Sequence[str]) -> Pictures:
    """The same pictures of several encoders, one below the other, with the encoder's name above.

    Numbers and data are called NAME_OF_THE_NUMBER.0, .1, ... in the order of the encoders.
    """
    out = []
    for same in zip(*made, strict=True):
        width = max(p.image.shape[1] for p in same)
        bands, data, numbers = [], {}, {}
        for i, (p, name) in enumerate(zip(same, names, strict=True)):
            title = Image.new("RGB", (width, TITLE), "white")
            ImageDraw.Draw(title).text((GAP, 4), name, fill=(20, 20, 20))
            side = ((0, 0), (0, width - p.image.shape[1]), (0, 0))
            bands += [np.asarray(title), np.pad(p.image, side, constant_values=255)]
            data |= {f"{k}.{i}": v for k, v in p.data.items()}
            numbers |= {f"{k}.{i}": v for k, v in p.numbers.items()}
        caption = " ".join(p.caption for p in same)
        films = [p.frames for p in same if p.frames is not None]
        frames = np.concatenate(films, axis=1) if len(films) == len(same) else None
        out.append(Picture(name=same[0].name, image=np.concatenate(bands), caption=caption,
                           data=data, numbers=numbers, frames=frames,
                           film=same[0].film))  # fmt: skip
    return Pictures(out)


def data_uri(image: np.ndarray) -> str:
    """A PNG as a data address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def enlarge(image: np.ndarray, side: int = TILE) -> np.ndarray:
    """uint8 [H, W, 3] to [side, side, 3], nearest neighbour (whole pixels stay visible)."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST))


def heat(values: np.ndarray) -> np.ndarray:
    """float [h, w], lowest to highest, as uint8 [h, w, 3] in the inferno map."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-12)
    return (matplotlib.colormaps["inferno"](scaled)[..., :3] * 255).astype(np.uint8)


def sheet(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str] = (), side: int = TILE
) -> np.ndarray:
    """Tiles in rows with a title over each column, on white."""
    columns = max(len(r) for r in rows)
    top = TITLE if titles else 0
    width = GAP + columns * (side + GAP)
    height = top + GAP + len(rows) * (side + GAP)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for c, title in enumerate(titles):
        draw.text((GAP + c * (side + GAP), 4), title, fill=(60, 60, 60))
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            place = (GAP + c * (side + GAP), top + GAP + r * (side + GAP))
            canvas.paste(Image.fromarray(enlarge(tile, side)), place)
    return np.asarray(canvas)


def chart(
    series: Sequence[tuple[str, Any, Any, str]],
    across: str,
    up: str,
    *,
    ticks: bool = True,
    names: Sequence[str] = (),
    side: float = 4.5,
) -> np.ndarray:
    """Points and lines as a picture: (name, x, y, style of matplotlib) each; side in inches; names
    stand at 0, 1, ... of the axis across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(side * 1.35, side), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for i, (name, x, y, style) in enumerate(series):
        colour = tuple(v / 255 for v in colour_of(i))
        axes.plot(x, y, style, label=name or None, color=colour, markersize=4, alpha=0.8)
    axes.set(xlabel=across, ylabel=up)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if names:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    if not ticks:
        axes.set(xticks=[], yticks=[])
    if any(name for name, *_ in series):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def dots(image: np.ndarray, points: np.ndarray, side: int = 192) -> np.ndarray:
    """The image enlarged, with numbered discs at points [M, 2] (x, y in its pixels); the same
    number has the same colour everywhere."""
    canvas = Image.fromarray(enlarge(image, side))
    draw = ImageDraw.Draw(canvas)
    for i, (x, y) in enumerate(points):
        x, y = x * side / image.shape[1], y * side / image.shape[0]
        colour = colour_of(i)
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour, outline=(255, 255, 255))
        draw.text((x, y), str(i + 1), fill=(255, 255, 255), anchor="mm")
    return np.asarray(canvas)


def colour_of(i: int) -> tuple[int, int, int]:
    """The i-th of twenty colours that people can tell apart, then again from the first."""
    r, g, b = matplotlib.colormaps["tab20"](i * 2 % 20 + i // 10 % 2)[:3]
    return int(255 * r), int(255 * g), int(255 * b)


def tinted(image: np.ndarray, groups: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """The image in grey below the colours of groups int [h, w]; -1 stays dim."""
    palette = np.array([colour_of(i) for i in range(max(int(groups.max()) + 1, 1))], np.uint8)
    flat = np.where(groups[..., None] >= 0, palette[groups.clip(0)], 235).astype(np.uint8)
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    over = np.asarray(
        Image.fromarray(flat).resize(image.shape[1::-1], Image.Resampling.NEAREST), np.float32
    )
    return (grey * (1 - strength) + over * strength).astype(np.uint8)
