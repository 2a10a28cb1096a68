"""Drawing helpers (contact sheets, charts, heat maps, overlays) and `Pictures`, the result."""

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
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from nolabel._files import atomic, read_json, replacement, write_text
from nolabel.data.sources._bands import to_rgb8
from nolabel.errors import UsageError
from nolabel.pictures.picture import Picture

VIDEO_FORMATS = ("webp", "mp4")
TILE = 128  # side of a tile in pixels; small images are resized to it by nearest neighbour
LARGE_TILE = 320  # height of a tile of photographs, at most
# Name (empty: no entry in the legend), x, y, and matplotlib's format string.
Series = tuple[str, ArrayLike, ArrayLike, str]
GAP, TITLE = 8, 18  # pixels between tiles, and of a line of text
HEAD_COLOURS = np.array(
    [[230, 60, 60], [60, 120, 230], [60, 180, 75], [245, 180, 20], [150, 70, 200], [30, 190, 190]],
    dtype=np.float32,
)


class Pictures:
    """A sequence of pictures with captions and numbers; rendered as HTML in notebooks.

    Attributes:
        encoder: checksum of the encoder's file, saved with the captions; "" where it is not known.
    """

    def __init__(self, items: Sequence[Picture]):
        self.items = tuple(items)
        self.encoder = ""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.items)

    def __getitem__(self, i: int) -> Picture:
        return self.items[i]

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """The numbers of each picture, by its name."""
        return {p.name: dict(p.numbers) for p in self.items}

    def save(self, folder: str | Path) -> list[Path]:
        """Writes each picture as PNG, its data as .npz, its video and texts, and numbers.json.

        Each file is written completely or not at all. Entries of other pictures in an existing
        numbers.json are kept.

        Returns:
            The paths written.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for p in self.items:
            paths.append(folder / f"{p.name}.png")
            with atomic(paths[-1]) as file:
                Image.fromarray(p.image).save(file, "PNG")
            for name, text in p.texts.items():
                paths.append(folder / name)
                write_text(paths[-1], text)
            if p.frames is not None:
                paths.append(save_video(folder / f"{p.name}.{p.video}", p.frames))
            if p.data:
                arrays: dict[str, Any] = dict(p.data)  # the stubs take keywords for flags
                paths.append(folder / f"{p.name}.npz")
                with atomic(paths[-1]) as file:
                    np.savez_compressed(file, **arrays)
        of = {"encoder": self.encoder} if self.encoder else {}
        captions = {
            p.name: {"caption": p.caption, "numbers": dict(p.numbers), **of} for p in self.items
        }
        paths.append(folder / "numbers.json")
        write_text(paths[-1], json.dumps({**read_captions(folder), **captions}, indent=2) + "\n")
        return paths

    def _repr_html_(self) -> str:
        return "".join(
            f'<figure><img src="{data_uri(p.image)}" alt="{html.escape(p.name)}">'
            f"<figcaption>{html.escape(p.caption)}</figcaption></figure>"
            for p in self.items
        )


def read_captions(folder: Path) -> dict[str, dict[str, Any]]:
    """Caption and numbers of each picture in a folder, by its name; what is damaged is left out."""
    found = read_json(folder / "numbers.json")
    if not isinstance(found, dict):
        return {}
    return {name: about for name, about in found.items() if isinstance(about, dict)}


def save_video(path: Path, frames: np.ndarray, rate: int = 10) -> Path:
    """Writes a video as a looping WebP or as MP4, as the suffix of the path says.

    Args:
        path: .webp or .mp4.
        frames: uint8 [T, H, W, 3].
        rate: frames per second.

    Returns:
        The path.

    Raises:
        UsageError: MP4 without the extra `video`.
    """
    if path.suffix == ".webp":
        first, *others = (Image.fromarray(f) for f in frames)
        with atomic(path) as file:
            first.save(
                file, "WEBP", save_all=True, append_images=others, duration=1000 // rate, loop=0
            )
        return path
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise UsageError(
            "MP4 needs its extra: pip install 'nolabel[video]', or use --video webp."
        ) from None
    height, width = (n // 2 * 2 for n in frames.shape[1:3])  # the codec needs even sides
    with replacement(path) as temporary, av.open(str(temporary), "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000
        for f in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(f[:height, :width]), "rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def stack_encoders(results: Sequence[Pictures], names: Sequence[str]) -> Pictures:
    """Stacks the pictures of several encoders vertically, each below its encoder's name.

    Numbers and data get the suffixes .0, .1, ... in the order of the encoders.

    Args:
        results: the same pictures of each encoder.
        names: of the encoders.
    """
    out = []
    for variants in zip(*results, strict=True):
        width = max(p.image.shape[1] for p in variants)
        bands, data, numbers, texts = [], {}, {}, {}
        for i, (p, name) in enumerate(zip(variants, names, strict=True)):
            title = Image.new("RGB", (width, TITLE), "white")
            ImageDraw.Draw(title).text((GAP, 4), name, fill=(20, 20, 20))
            padding = ((0, 0), (0, width - p.image.shape[1]), (0, 0))
            bands += [np.asarray(title), np.pad(p.image, padding, constant_values=255)]
            data |= {f"{k}.{i}": v for k, v in p.data.items()}
            numbers |= {f"{k}.{i}": v for k, v in p.numbers.items()}
            texts |= {f"{i}-{k}": v for k, v in p.texts.items()}
        caption = " ".join(p.caption for p in variants)
        videos = [p.frames for p in variants if p.frames is not None]
        frames = np.concatenate(videos, axis=1) if len(videos) == len(variants) else None
        out.append(Picture(name=variants[0].name, image=np.concatenate(bands), caption=caption,
                           data=data, numbers=numbers, frames=frames, texts=texts,
                           video=variants[0].video))  # fmt: skip
    return Pictures(out)


def data_uri(image: np.ndarray) -> str:
    """An image uint8 or uint16 [H, W, C] as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(to_rgb8(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def tile_shape(images: np.ndarray, least: int = TILE, most: int = LARGE_TILE) -> tuple[int, int]:
    """Height and width of the tiles of images uint8 [N, H, W, 3]; the shape is kept."""
    h, w = images.shape[1:3]
    height = min(max(h, least), most)
    return height, max(round(height * w / h), 1)


def enlarge(image: np.ndarray, side: int | tuple[int, int] = TILE) -> np.ndarray:
    """Resizes an image; the pixels of a small one stay visible, a large one is shrunk smoothly.

    Args:
        image: uint8 or uint16 [H, W, C].
        side: of the square, or height and width.

    Returns:
        uint8 [side, side, 3], or [height, width, 3].
    """
    height, width = (side, side) if isinstance(side, int) else side
    smaller = image.shape[0] > height and image.shape[1] > width
    how = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(to_rgb8(image)).resize((width, height), how))


def on_image(image: np.ndarray, colours: np.ndarray, opacity: float = 0.65) -> np.ndarray:
    """Colours of patches, drawn smoothly over their image; alone if the image is a small one.

    Args:
        image: uint8 [H, W, 3].
        colours: of the patches, uint8 [h, w, 3].
        opacity: of the colours, from 0 to 1.

    Returns:
        uint8 [H, W, 3], or `colours` for an image of at most `TILE` pixels.
    """
    if min(image.shape[:2]) <= TILE:
        return colours
    over = Image.fromarray(colours).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    return np.asarray(Image.blend(Image.fromarray(to_rgb8(image)), over, opacity))


def heat(values: np.ndarray) -> np.ndarray:
    """A heat map uint8 [h, w, 3] of float [h, w], scaled to its range, in the inferno colours."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / max(high - low, 1e-12)
    return (matplotlib.colormaps["inferno"](scaled)[..., :3] * 255).astype(np.uint8)


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str] = (),
    side: int | tuple[int, int] = TILE,
) -> np.ndarray:
    """A contact sheet on white.

    Args:
        rows: images uint8 or uint16 [H, W, C] of each row; all are resized to one shape.
        titles: one for each column.
        side: of a square tile in pixels, or height and width (`tile_shape`).

    Returns:
        uint8 [H, W, 3].
    """
    tall, wide = (side, side) if isinstance(side, int) else side
    columns = max(len(r) for r in rows)
    top = TITLE if titles else 0
    width = GAP + columns * (wide + GAP)
    height = top + GAP + len(rows) * (tall + GAP)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for c, title in enumerate(titles):
        draw.text((GAP + c * (wide + GAP), 4), title, fill=(60, 60, 60))
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            corner = (GAP + c * (wide + GAP), top + GAP + r * (tall + GAP))
            canvas.paste(Image.fromarray(enlarge(tile, (tall, wide))), corner)
    return np.asarray(canvas)


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    ticks: bool = True,
    names: Sequence[str] = (),
    side: float = 4.5,
    bands: Sequence[Sequence[tuple[float, float, float]]] = (),
) -> np.ndarray:
    """A chart of points and lines.

    Args:
        series: what to plot, each in its own colour.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        ticks: whether the axes have ticks.
        names: tick labels at 0, 1, ... of the horizontal axis; none: numbers.
        side: height in inches, at 100 pixels an inch.
        bands: for each series (x, lowest y, highest y) of its intervals; none: no bands.

    Returns:
        uint8 [H, W, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(side * 1.35, side), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for i, (name, x, y, style) in enumerate(series):
        colour = tuple(v / 255 for v in colour_of(i))
        axes.plot(x, y, style, label=name or None, color=colour, markersize=4, alpha=0.8)
    for i, band in enumerate(bands):
        x, low, high = zip(*sorted(band), strict=True)
        colour = tuple(v / 255 for v in colour_of(i))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=x_label, ylabel=y_label)
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


def draw_points(
    image: np.ndarray,
    points: np.ndarray,
    side: int | tuple[int, int] = 192,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """The image resized, with a numbered disc at each point; the i-th has `colour_of(i)`.

    Args:
        image: uint8 [H, W, 3].
        points: float [M, 2], x and y.
        side: of the result in pixels, or its height and width.
        scale: height and width of what the points are measured in; None: of the image.

    Returns:
        uint8 [side, side, 3], or [height, width, 3].
    """
    tall, wide = (side, side) if isinstance(side, int) else side
    high, across = scale or image.shape[:2]
    canvas = Image.fromarray(enlarge(image, (tall, wide)))
    draw = ImageDraw.Draw(canvas)
    for i, (x, y) in enumerate(points):
        x, y = x * wide / across, y * tall / high
        colour = colour_of(i)
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour, outline=(255, 255, 255))
        draw.text((x, y), str(i + 1), fill=(255, 255, 255), anchor="mm")
    return np.asarray(canvas)


def colour_of(i: int) -> tuple[int, int, int]:
    """The i-th of twenty distinguishable colours (tab20), cyclic: r, g, b in 0..255."""
    r, g, b = matplotlib.colormaps["tab20"](i * 2 % 20 + i // 10 % 2)[:3]
    return int(255 * r), int(255 * g), int(255 * b)


def overlay_groups(image: np.ndarray, groups: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Colours the patches of each group over the grey image.

    Args:
        image: uint8 [H, W, 3].
        groups: int [h, w], from 0; -1 is light grey.
        strength: opacity of the colours, from 0 to 1.

    Returns:
        uint8 [H, W, 3].
    """
    palette = np.array([colour_of(i) for i in range(max(int(groups.max()) + 1, 1))], np.uint8)
    flat = np.where(groups[..., None] >= 0, palette[groups.clip(0)], 235).astype(np.uint8)
    grey = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    over = np.asarray(
        Image.fromarray(flat).resize(image.shape[1::-1], Image.Resampling.NEAREST), np.float32
    )
    return (grey * (1 - strength) + over * strength).astype(np.uint8)
