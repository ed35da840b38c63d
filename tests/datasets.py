"""Read the real data sets that the sample models are trained on and tests are judged by.

Nothing here comes from a model hub: one Debian package, one PyPI wheel that bundles its data, and one Debian
package that is unpacked into a cache. A reader that cannot find its data raises `DatasetMissing` and says what to
install, so that a test can skip with a reason.
"""

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tests.packaged import DatasetMissing, from_debian, from_wheel

Split = Literal["train", "test"]
Labels = NDArray[np.int64]

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts it
AEON = "aeon==1.6.0"
LETTER_TRAIN_ROWS = 16_000  # the split its donors used: first 16,000 train, last 4,000 test

__all__ = ["DatasetMissing", "Split", "fashion_mnist", "japanese_vowels", "letter_recognition"]


def fashion_mnist(split: Split) -> tuple[NDArray[np.uint8], Labels]:
    """Return Fashion-MNIST: 60,000 train or 10,000 test grey images.

    Returns:
        images uint8 [n, 28, 28], 0 black (background) to 255; labels int64 [n], 0..9.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images = _read_idx(_fashion_mnist_file(f"{prefix}-images-idx3-ubyte.gz"))
    labels = _read_idx(_fashion_mnist_file(f"{prefix}-labels-idx1-ubyte.gz"))
    return images, labels.astype(np.int64)


def japanese_vowels(split: Split) -> tuple[list[NDArray[np.float32]], Labels]:
    """Return JapaneseVowels: 270 train or 370 test utterances of nine speakers.

    Returns:
        one float32 [T, 12] array of cepstrum coefficients per utterance, each at its true length (T is 7..29
        frames); labels int64 [n], 0..8 for speakers 1..9.
    """
    text = _japanese_vowels_file(split).read_text("ascii")
    lines = text[text.index("@data") :].split()[1:]
    frames, speakers = [], []
    for line in lines:  # channel:channel:...:speaker, each channel a comma-separated series
        *channels, speaker = line.split(":")
        frames.append(np.array([channel.split(",") for channel in channels], dtype=np.float32).T.copy())
        speakers.append(int(speaker) - 1)
    return frames, np.array(speakers, dtype=np.int64)


def letter_recognition(split: Split) -> tuple[NDArray[np.float32], Labels]:
    """Return LetterRecognition: the first 16,000 rows to train, the last 4,000 to test.

    Returns:
        features float32 [n, 16], whole numbers 0..15; labels int64 [n], 0..25 for A..Z.
    """
    try:
        import rdata
    except ImportError as exc:
        raise DatasetMissing("LetterRecognition is an R file; to read it: pip install rdata") from exc
    table = rdata.read_rda(_letter_recognition_file(), default_encoding="ascii")["LetterRecognition"]
    rows = slice(None, LETTER_TRAIN_ROWS) if split == "train" else slice(LETTER_TRAIN_ROWS, None)
    features = table.drop(columns="lettr").to_numpy(dtype=np.float32)
    labels = np.array([ord(letter) - ord("A") for letter in table["lettr"]], dtype=np.int64)
    return features[rows], labels[rows]


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one gzipped IDX file of unsigned bytes, of any rank."""
    with gzip.open(path) as stream:
        data = stream.read()
    rank = data[3]
    if data[:3] != b"\0\0\x08":  # two zero bytes, then 8 for "unsigned byte"
        raise ValueError(f"{path} is not an IDX file of bytes")
    shape = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()  # writable, as PyTorch wants


def _fashion_mnist_file(name: str) -> Path:
    """Return the installed file of Debian's dataset-fashion-mnist, else one unpacked into the cache."""
    installed = FASHION_MNIST_DIR / name
    member = str(installed).lstrip("/")
    return installed if installed.is_file() else from_debian("dataset-fashion-mnist", member)


def _japanese_vowels_file(split: Split) -> Path:
    """Return the cached series file, taken out of aeon's wheel on first use.

    The wheel is not installed: with its dependencies it is a hundred times the size of the data.
    """
    return from_wheel(AEON, f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{split.upper()}.ts")


def _letter_recognition_file() -> Path:
    """Return the cached R file of Debian's r-cran-mlbench (unpacked, not installed)."""
    return from_debian("r-cran-mlbench", "usr/lib/R/site-library/mlbench/data/LetterRecognition.rda")
