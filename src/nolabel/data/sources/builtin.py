"""Named data sets of small images: `digits`, `fashion-mnist` and `cifar10`."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nolabel.data._cache import cache_folder
from nolabel.data.sources.arrays import Arrays
from nolabel.data.split import split
from nolabel.errors import DataError, UsageError

FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# Where the Debian and Ubuntu package dataset-fashion-mnist puts its files.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_IMAGES_MAGIC, _LABELS_MAGIC = 0x0803, 0x0801  # IDX: unsigned bytes, of 3 and of 1 dimensions


def digits(split_name: str) -> Arrays:
    """scikit-learn's digits, white on black, 8 x 8 pixels: 80 % train, 20 % test, stratified."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # 17 levels of ink
    labels = data.target.astype(np.int64)
    both = Arrays("digits", pixels, labels, tuple(str(i) for i in range(10)))
    train, test = split(both, 0.2, seed=0)
    indices = (train if split_name == "train" else test).indices
    return Arrays(f"digits:{split_name}", pixels[indices], labels[indices], both.classes)


def fashion_mnist(split_name: str, *, download: bool = False) -> Arrays:
    """Fashion-MNIST: grey, 28 x 28 pixels, 60,000 train and 10,000 test.

    Read from the system's package if it is installed, else from the cache folder. If it is in
    neither, torchvision downloads it there when `download` is true, or after asking on a terminal.

    Args:
        split_name: "train" or "test".
        download: whether it may be downloaded without asking.

    Raises:
        UsageError: the files are not there and may not be downloaded.
        DataError: the files are damaged, or the download failed.
    """
    folder = _fashion_folder(download)
    stem = "train" if split_name == "train" else "t10k"
    pixels = read_idx(_plain_or_gzip(folder, f"{stem}-images-idx3-ubyte"), _IMAGES_MAGIC)
    labels = read_idx(_plain_or_gzip(folder, f"{stem}-labels-idx1-ubyte"), _LABELS_MAGIC)
    labels = labels.astype(np.int64)
    if len(pixels) != len(labels) or pixels.shape[1:] != (28, 28) or labels.max(initial=0) > 9:
        raise DataError(
            f"The files of fashion-mnist in {str(folder)!r} do not belong together: images "
            f"{list(pixels.shape)}, {len(labels)} labels. Remove them and download them again."
        )
    return Arrays(f"fashion-mnist:{split_name}", pixels, labels, FASHION_CLASSES)


def cifar10(split_name: str, *, download: bool = False) -> Arrays:
    """CIFAR-10: colour, 32 x 32 pixels, 50,000 train and 10,000 test.

    The binary version is used, since the Python version consists of pickle files. It is read from
    the cache folder, or downloaded there when `download` is true or after asking on a terminal.

    Args:
        split_name: "train" or "test".
        download: whether it may be downloaded without asking.

    Raises:
        UsageError: the files are not there and may not be downloaded.
        DataError: the files are damaged, or the download failed.
    """
    folder = cache_folder() / "cifar-10-batches-bin"
    if split_name == "train":
        files = [folder / f"data_batch_{i}.bin" for i in range(1, 6)]
    else:
        files = [folder / "test_batch.bin"]
    if not all(file.is_file() for file in files):
        _fetch_cifar(folder.parent, download)
    rows = np.concatenate([_cifar_rows(file) for file in files])
    labels = rows[:, 0].astype(np.int64)
    pixels = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(f"cifar10:{split_name}", np.ascontiguousarray(pixels), labels, CIFAR_CLASSES)


def _cifar_rows(file: Path) -> np.ndarray:
    """uint8 [N, 3073]: per image the label, then its red, green and blue planes of 32 x 32."""
    try:
        rows = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read ({error}). Fetch it again.") from None
    if not rows.size or rows.size % 3073 or rows[::3073].max() > 9:
        raise DataError(
            f"{str(file)!r} is damaged: {rows.size:,} bytes are not a multiple of 3,073, "
            "or a label is above 9. Remove it and fetch it again."
        )
    return rows.reshape(-1, 3073)


def _fetch_cifar(root: Path, download: bool) -> None:
    if not download and not _user_agrees("cifar10", 170, root):
        raise UsageError(
            f"cifar10 is not on this machine. Add --download to fetch it (170 MB) from {CIFAR_URL}"
            f", or unpack that file in {str(root)!r}."
        )
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(CIFAR_URL, str(root), md5=CIFAR_MD5, remove_finished=True)
    except Exception as error:
        raise DataError(f"cifar10 could not be downloaded to {str(root)!r}: {error}") from error


def read_idx(path: Path, magic: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file.
        magic: its first four bytes as a number; the last byte is the number of dimensions.

    Returns:
        uint8, of the shape in the file's header.

    Raises:
        DataError: the file is missing, damaged or not such an IDX file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read ({error}). Fetch it again.") from None
    dims = magic & 0xFF
    header = (
        np.frombuffer(content[: 4 + 4 * dims], dtype=">u4") if len(content) >= 8 else np.empty(0)
    )
    if len(header) != 1 + dims or header[0] != magic:
        raise DataError(f"{str(path)!r} is not an IDX file of {dims} dimensions. Fetch it again.")
    shape = tuple(int(n) for n in header[1:])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dims)
    if values.size != int(np.prod(shape)):
        raise DataError(
            f"{str(path)!r} is damaged: its header says {list(shape)} bytes, it holds "
            f"{values.size:,}. Fetch it again."
        )
    return values.reshape(shape)


def _plain_or_gzip(folder: Path, name: str) -> Path:
    """The uncompressed file if it exists, else its name with .gz."""
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"


def _is_complete(folder: Path) -> bool:
    return all(
        _plain_or_gzip(folder, f"{part}-ubyte").is_file()
        for part in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        )
    )


def _fashion_folder(download: bool) -> Path:
    root = cache_folder()
    downloaded = root / "FashionMNIST" / "raw"  # as torchvision names it
    for folder in (SYSTEM_FOLDER, downloaded):
        if _is_complete(folder):
            return folder
    if not download and not _user_agrees("fashion-mnist", 30, root):
        raise UsageError(
            "fashion-mnist is not on this machine. Install the Debian or Ubuntu package "
            "dataset-fashion-mnist, or add --download to fetch it (30 MB)."
        )
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(root), train=True, download=True)
    except Exception as error:
        raise DataError(
            f"fashion-mnist could not be downloaded to {str(root)!r}: {error}"
        ) from error
    return downloaded


def _user_agrees(name: str, megabytes: int, root: Path) -> bool:
    """Asks for permission to download; without a terminal the answer is no."""
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    sys.stderr.write(f"{name} is missing. Download it ({megabytes} MB) to {root}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
