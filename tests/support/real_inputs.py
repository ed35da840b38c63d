"""Real inputs for real models: photographs, lines of text, speech."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.packaged import DatasetMissing, debian_tree, from_wheel

__all__ = [
    "LABELLED", "SAMPLE_HZ", "UNLABELLED", "Subject", "crops", "crops_around", "lines_of_text", "photograph", "speech",
]  # fmt: skip

_IMAGES = "scikit-image==0.26.0"
_MORE_IMAGES = "scikit-learn==1.9.1"


class Subject(NamedTuple):
    """What is seen on a photograph: its class of ImageNet, where its middle is (shares of width and height), and why it
    is that class. Between near classes it is the one that the model takes, so FP32 looks better than it is; what INT8
    loses against it is what counts.
    """

    label: int
    x: float
    y: float
    why: str


LABELLED = {
    "chelsea.png": Subject(285, 0.55, 0.5, "Egyptian cat: short hair, thin stripes (next to it: tabby, 281)"),
    "coffee.png": Subject(967, 0.5, 0.5, "espresso: a small cup of it, with its crema"),
    "motorcycle_left.png": Subject(665, 0.5, 0.45, "moped: ImageNet has no motorcycle, and this is the nearest to one"),
    "rocket.jpg": Subject(657, 0.5, 0.5, "missile: a rocket that stands upright between its towers"),
    "camera.png": Subject(872, 0.55, 0.6, "tripod: the one that the camera stands on"),
    "china.jpg": Subject(698, 0.33, 0.5, "palace: a tower of the Summer Palace"),
    "flower.jpg": Subject(985, 0.48, 0.5, "daisy: a dahlia, and of its family ImageNet has the daisy alone"),
    "grace_hopper.jpg": Subject(652, 0.5, 0.6, "military uniform: an admiral in hers"),
}  # fmt: skip
"""Photographs of scikit-image, scikit-learn and matplotlib whose subject is one of ImageNet's classes."""
UNLABELLED = (
    "astronaut.png", "coins.png", "moon.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "page.png", "brick.png",
    "grass.png", "gravel.png", "clock_motion.png",
)  # fmt: skip
"""Of scikit-image, and of none of ImageNet's classes for sure."""
SAMPLE_HZ = 16000
_LICENCE = Path(__file__).parents[2] / "LICENSE"
_ESPEAK = ["espeak-ng", "libespeak-ng1", "espeak-ng-data", "libpcaudio0", "libsonic0"]


def photograph(name: str) -> Image.Image:
    """In colour, as large as it comes."""
    if name in ("china.jpg", "flower.jpg"):
        path = from_wheel(_MORE_IMAGES, f"sklearn/datasets/images/{name}")
    elif name == "grace_hopper.jpg":
        path = _of_matplotlib("sample_data") / name
    else:
        path = from_wheel(_IMAGES, f"skimage/data/{name}")
    return Image.open(path).convert("RGB")


def _of_matplotlib(folder: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / folder


def crops(image: Image.Image, count: int, side: int, seed: int = 0) -> np.ndarray:
    """Squares of half to all of the shorter side, some mirrored: uint8 [count, side, side, 3]. The first is the middle,
    as large as may be.
    """
    rng = np.random.default_rng(seed)
    width, height = image.size
    shorter = min(width, height)
    found = [_square(image, (width - shorter) // 2, (height - shorter) // 2, shorter, side)]
    for _ in range(count - 1):
        size = int(shorter * rng.uniform(0.5, 1.0))
        left, top = rng.integers(0, width - size + 1), rng.integers(0, height - size + 1)
        cut = _square(image, int(left), int(top), size, side)
        found.append(cut[:, ::-1] if rng.random() < 0.5 else cut)
    return np.stack(found)


def crops_around(image: Image.Image, subject: Subject, count: int, side: int, seed: int = 0) -> np.ndarray:
    """Squares of 60 to 100 % of the shorter side, half of them mirrored: uint8 [count, side, side, 3].

    The middle of the subject is in the middle half of each, as far as the edges of the photograph allow.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size = int(min(image.size) * rng.uniform(0.6, 1.0))
        shares = zip((subject.x, subject.y), image.size, rng.uniform(0.25, 0.75, 2), strict=True)
        left, top = (int(np.clip(at * length - off * size, 0, length - size)) for at, length, off in shares)
        cut = _square(image, left, top, size, side)
        found.append(cut[:, ::-1] if rng.random() < 0.5 else cut)
    return np.stack(found)


def _square(image: Image.Image, left: int, top: int, size: int, side: int) -> np.ndarray:
    box = (left, top, left + size, top + size)
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box))


def lines_of_text(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Words of the licence in several fonts, greys and sizes, half of them upside down.

    uint8 [count, 48, 192, 3], and 0 for upright, 1 for upside down.
    """
    rng = np.random.default_rng(seed)
    words = re.findall(r"[A-Za-z]{2,}[,.]?", _LICENCE.read_text())
    folder = _of_matplotlib("fonts/ttf")
    fonts = [folder / f"DejaVu{kind}.ttf" for kind in ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "SansMono")]
    turned = rng.permutation(np.arange(count) % 2)
    drawn = []
    for is_turned in turned:
        start, length = int(rng.integers(0, len(words) - 3)), int(rng.integers(1, 4))
        image = _line(" ".join(words[start : start + length]), fonts[rng.integers(len(fonts))], rng)
        drawn.append(np.asarray(image.rotate(180) if is_turned else image))
    return np.stack(drawn), turned


def _line(text: str, font: Path, rng: np.random.Generator) -> Image.Image:
    """As a detector would cut it out: scaled to the height, padded or squeezed to the width."""
    letters = ImageFont.truetype(str(font), int(rng.integers(24, 40)))
    left, top, right, bottom = letters.getbbox(text)
    margin = int(rng.integers(2, 9))
    paper, ink = int(rng.integers(150, 256)), int(rng.integers(0, 100))
    size = int(right - left) + 2 * margin, int(bottom - top) + 2 * margin
    image = Image.new("RGB", size, (paper,) * 3)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=letters, fill=(ink,) * 3)
    scaled = image.resize((min(192, round(48 * size[0] / size[1])), 48), Image.Resampling.BILINEAR)
    line = Image.new("RGB", (192, 48), (127,) * 3)
    line.paste(scaled, (0, 0))
    return line


def speech(text: str, voice: str = "en-us", words_a_minute: int = 160) -> np.ndarray:
    """Spoken by espeak-ng: float32 [samples] in -1..1 at 16 kHz. Raises DatasetMissing where it cannot be run."""
    command, environment = _espeak()
    words = [*command, "-v", voice, "-s", str(words_a_minute), "--stdout", text]
    done = subprocess.run(words, check=False, capture_output=True, env={**os.environ, **environment})
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        raise DatasetMissing(f"espeak-ng does not run ({said}): apt-get install espeak-ng")
    return _at_16_khz(done.stdout)


def _espeak() -> tuple[list[str], dict[str, str]]:
    """The command and what its environment needs: the installed one, else one that is unpacked into the cache."""
    installed = shutil.which("espeak-ng")
    if installed:
        return [installed], {}
    tree = debian_tree(_ESPEAK)
    (library,) = (found.parent for found in tree.glob("usr/lib/*/espeak-ng-data"))
    return [str(tree / "usr" / "bin" / "espeak-ng"), f"--path={library}"], {"LD_LIBRARY_PATH": str(library)}


def _at_16_khz(wav: bytes) -> np.ndarray:
    """Linear between samples: espeak-ng speaks at 22050 Hz, and little of it lies beyond 8 kHz."""
    stream = io.BytesIO(wav)
    header = stream.read(44)
    rate = int.from_bytes(header[24:28], "little")
    samples = np.frombuffer(stream.read(), "<i2").astype(np.float32) / 2**15
    times = np.arange(0, len(samples) - 1, rate / SAMPLE_HZ)
    return np.interp(times, np.arange(len(samples)), samples).astype(np.float32)
