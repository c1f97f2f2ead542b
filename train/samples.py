"""The sample folders in datasets/: one style and two characters, from the same icon sets as the base, which has seen none of them.

    python train/samples.py --raw RAW --output datasets     # RAW holds the npm tarballs that train/emoji/icons.py names

The style is Fluent's high-contrast set, one drawing a concept. A character is one concept that was held out of the base, in three
drawings and light variants of each. Run it twice and the pixels are the same: every variant is a function of its name and number.
"""

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emoji import icons
from emoji.examples import article
from emoji.styles import PHRASES

SIZE = 512  # pixels: enough for real SD models too
STYLE_TRIGGER = "sks style"
STYLE_CONCEPTS = (  # spread over the sorts of things; the concepts that `sdlora demo` draws stay out, so that they show transfer
    *("bear", "turtle", "pig-face", "giraffe", "butterfly", "snail", "dolphin", "chicken", "monkey"),  # animals
    *("banana", "pizza", "ice-cream", "carrot", "birthday-cake", "hot-beverage", "cherries"),  # food
    *("camera", "light-bulb", "hammer", "bell", "scissors", "alarm-clock", "trophy", "teapot"),  # objects
    *("airplane", "bicycle", "sailboat", "locomotive", "tractor"),  # vehicles
    *("grinning-face", "smiling-face-with-sunglasses", "clown-face"),  # faces
    *("peace-symbol", "high-voltage", "sun", "cactus"),  # symbols and nature
)
VARIANTS = 5  # of each drawing of a character; the first is the drawing as it is

MICROSOFT = """The drawings come from Fluent Emoji by Microsoft Corporation (the repository microsoft/fluentui-emoji),
by way of {packages}, under the MIT licence:

    MIT License

    Copyright (c) Microsoft Corporation.

    Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
    associated documentation files (the "Software"), to deal in the Software without restriction,
    including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense,
    and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so,
    subject to the following conditions:

    The above copyright notice and this permission notice shall be included in all copies or substantial
    portions of the Software.

    THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
    LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN
    NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
    WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
    SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
GOOGLE = """The drawing comes from Noto Emoji by Google Inc (the repository googlefonts/noto-emoji), by way of
{packages}, under the Apache License, Version 2.0. The text of that licence is the file LICENSE
in the root of this repository.
"""


@dataclass(frozen=True)
class Sample:
    name: str  # stem of the two files
    caption: str
    image: Image.Image


def on_white(picture: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def vary(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotated by at most 10°, scaled by 0.78–0.98, shifted by at most 4 % of the width and every second time mirrored, on white."""
    angle, scale = np.deg2rad(rng.uniform(-10, 10)), 1 / rng.uniform(0.78, 0.98)
    shift_x, shift_y = rng.uniform(-0.04, 0.04, 2) * picture.width
    flip = -1.0 if rng.random() < 0.5 else 1.0
    centre = picture.width / 2
    a, b, d, e = scale * np.cos(angle) * flip, scale * np.sin(angle) * flip, -scale * np.sin(angle), scale * np.cos(angle)
    x, y = centre + shift_x, centre + shift_y
    matrix = (a, b, centre - a * x - b * y, d, e, centre - d * x - e * y)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white")


def style_samples(raw: Path) -> list[Sample]:
    words = icons.concepts()
    pictures = {name: on_white(icons.render(raw, "contrast", name, SIZE)) for name in STYLE_CONCEPTS}
    return [Sample(name, f"{article(words[name])}, {STYLE_TRIGGER}", picture.convert("L")) for name, picture in pictures.items()]


def character_samples(raw: Path, concept: str, trigger: str) -> list[Sample]:
    samples = []
    for style in ("flat", "3d", "noto"):
        drawing = on_white(icons.render(raw, style, concept, SIZE))
        for number in range(VARIANTS):
            name = f"{concept}-{style}-{number + 1}"
            picture = vary(drawing, np.random.default_rng(zlib.crc32(name.encode()))) if number else drawing
            samples.append(Sample(name, f"{article(trigger)}, {PHRASES[style]}", picture))
    return samples


def packages(*styles: str) -> str:
    """The npm packages of these styles, as they are named in a licence text."""
    return "npm's " + " and ".join("@iconify-json/{}@{}".format(*icons.PACKAGES[style]) for style in styles)


def style_licence() -> str:
    changes = f"Changes: rendered at {SIZE} × {SIZE} pixels, black on white.\n"
    return "\n".join([MICROSOFT.format(packages=packages("contrast")), changes])


def character_licence(concept: str) -> str:
    changes = f"Changes: rendered at {SIZE} × {SIZE} pixels on white; numbers 2 and above are turned, scaled, shifted or mirrored.\n"
    fluent = f"{concept}-flat-*.png and {concept}-3d-*.png\n\n" + MICROSOFT.format(packages=packages("flat", "3d"))
    return "\n".join([fluent, f"{concept}-noto-*.png\n\n" + GOOGLE.format(packages=packages("noto")), changes])


def write(folder: Path, samples: list[Sample], licence: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        # 256 colours are indistinguishable on these drawings and make a file a third as large
        image = sample.image if sample.image.mode == "L" else sample.image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        image.save(folder / f"{sample.name}.png", optimize=True)
        (folder / f"{sample.name}.txt").write_text(sample.caption + "\n", encoding="utf-8")
    (folder / "LICENSE").write_text(licence, encoding="utf-8")
    print(f"{folder}: {len(samples)} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="folder of the npm tarballs")
    parser.add_argument("--output", type=Path, default=Path("datasets"))
    options = parser.parse_args()
    write(options.output / "high-contrast", style_samples(options.raw), style_licence())
    write(options.output / "robot", character_samples(options.raw, "robot", "zorbot robot"), character_licence("robot"))
    write(options.output / "octopus", character_samples(options.raw, "octopus", "blimpo octopus"), character_licence("octopus"))


if __name__ == "__main__":
    main()
