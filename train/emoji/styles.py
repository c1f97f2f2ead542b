"""Pictures of one concept in many styles, recoloured and combined: what the embedded base is trained on.

A base that has seen style vary freely from concept keeps the two apart, and so a new style that an adapter
brings transfers without losing the concept. Three styles are real drawings; the rest is image processing.
All functions take RGBA pictures of 128 × 128 pixels and return RGB ones, float32 in [0, 1].
"""

import numpy as np
from PIL import Image, ImageFilter

PHRASES = {  # style -> the words for it in a caption
    "flat": "flat emoji",
    "3d": "3d emoji",
    "noto": "noto emoji",
    "grey": "greyscale emoji",
    "sepia": "sepia emoji",
    "line": "line drawing",
    "stencil": "black and white stencil",
    "pixel": "pixel art",
    "dark": "emoji on a dark background",
    "blueprint": "blueprint",
    "chalk": "chalk drawing",
    "negative": "negative image",
    "sticker": "sticker",
}
SOURCES = {"flat": ("flat",), "3d": ("3d",), "noto": ("noto",), "line": ("flat", "noto"), "stencil": ("flat", "noto")}
REAL = ("flat", "3d", "noto")
HUES = {"red": 0.0, "orange": 0.08, "yellow": 0.15, "green": 0.34, "blue": 0.6, "purple": 0.77, "pink": 0.9}
BACKGROUNDS = {"yellow": (255, 224, 96), "blue": (140, 196, 255), "green": (152, 224, 150), "pink": (255, 184, 208)}
ACCESSORIES = {"crown": "a crown", "top-hat": "a top hat", "graduation-cap": "a graduation cap"}


def over(picture: Image.Image, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    canvas = Image.new("RGBA", picture.size, (*colour, 255))
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB"), np.float32) / 255


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def ramp(value: np.ndarray, dark: tuple, light: tuple) -> np.ndarray:
    """A grey picture in [0, 1] as a two-colour one."""
    low, high = np.array(dark, np.float32) / 255, np.array(light, np.float32) / 255
    return low + value[..., None] * (high - low)


def ink(picture: Image.Image) -> np.ndarray:
    """Contours as a grey picture: 1 on paper, 0 on a line about 3 pixels wide."""
    rgb = over(picture.filter(ImageFilter.GaussianBlur(0.8)), (255, 255, 255))
    layers = np.concatenate([rgb, np.asarray(picture.getchannel("A"), np.float32)[..., None] / 255], -1)
    dx, dy = np.zeros_like(layers), np.zeros_like(layers)
    dx[:, 1:-1] = layers[:, 2:] - layers[:, :-2]
    dy[1:-1] = layers[2:] - layers[:-2]
    edge = np.sqrt(dx**2 + dy**2).max(-1)
    line = Image.fromarray(np.uint8(255 * np.clip((edge - 0.16) / 0.2, 0, 1)))
    return 1 - np.asarray(line.filter(ImageFilter.MaxFilter(3)), np.float32) / 255


def stencil(picture: Image.Image) -> np.ndarray:
    """Dark parts black, light parts white, and a black contour."""
    grey = luminance(over(picture))
    inside = np.asarray(picture.getchannel("A"), np.float32) > 128
    cut = np.median(grey[inside]) if inside.any() else 0.5
    solid = 1 / (1 + np.exp(-(grey - min(cut - 0.05, 0.75)) * 80))
    return ramp(np.minimum(solid, ink(picture)), (0, 0, 0), (255, 255, 255))


def pixelate(picture: Image.Image) -> np.ndarray:
    small = Image.fromarray(np.uint8(255 * over(picture))).resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.NEAREST), np.float32) / 255


def sticker(picture: Image.Image) -> np.ndarray:
    """A white rim round the drawing, on a lilac ground."""
    rim = picture.getchannel("A").filter(ImageFilter.MaxFilter(11)).filter(ImageFilter.GaussianBlur(1))
    shape = np.asarray(rim, np.float32)[..., None] / 255
    return ramp(np.zeros(picture.size[::-1]), (178, 160, 220), (0, 0, 0)) * (1 - shape) + over(picture) * shape


DRAW = {
    "grey": lambda p: ramp(luminance(over(p)), (0, 0, 0), (255, 255, 255)),
    "sepia": lambda p: ramp(luminance(over(p)), (52, 28, 10), (250, 232, 196)),
    "line": lambda p: ramp(ink(p), (0, 0, 0), (255, 255, 255)),
    "stencil": stencil,
    "pixel": pixelate,
    "dark": lambda p: over(p, (24, 26, 48)),
    "blueprint": lambda p: ramp(ink(p), (240, 246, 255), (28, 74, 168)),
    "chalk": lambda p: ramp(ink(p) * 0.92 + 0.08 * (1 - luminance(over(p))), (236, 236, 226), (34, 52, 44)),
    "negative": lambda p: 1 - over(p),
    "sticker": sticker,
}


def draw(picture: Image.Image, style: str) -> np.ndarray:
    return over(picture) if style in REAL else DRAW[style](picture)


def recolour(picture: Image.Image, hue: float) -> Image.Image:
    """Every coloured pixel takes the hue; brown, yellow and grey ones too, so that any drawing can be tinted."""
    alpha = picture.getchannel("A")
    h, s, v = (np.asarray(c, np.float32) for c in picture.convert("RGB").convert("HSV").split())
    tinted = np.where((s > 40) | ((v > 60) & (v < 215)), np.maximum(s, 150), s)
    bands = [Image.fromarray(np.uint8(c)) for c in (np.full_like(h, hue * 255), tinted, v)]
    result = Image.merge("HSV", bands).convert("RGB")
    result.putalpha(alpha)
    return result


def fit(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, width), Image.Resampling.LANCZOS)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", left.size)
    canvas.alpha_composite(fit(left, 66), (0, 31))
    canvas.alpha_composite(fit(right, 66), (62, 31))
    return canvas


def wearing(body: Image.Image, hat: Image.Image) -> Image.Image:
    """The drawing a little smaller and lower, the hat on top of it."""
    canvas = Image.new("RGBA", body.size)
    small, top = fit(body, 100), fit(hat, 58)
    first = (small.getchannel("A").getbbox() or (0, 0, 0, 0))[1]
    base = (top.getchannel("A").getbbox() or (0, 0, 0, 58))[3]
    canvas.alpha_composite(small, (14, 28))
    canvas.alpha_composite(top, (35, max(0, 28 + first - base + 10)))
    return canvas


def move(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A light random affine change; mirrored one time in three."""
    angle, scale = np.deg2rad(rng.uniform(-8, 8)), 1 / rng.uniform(0.82, 1.02)
    flip = -1.0 if rng.random() < 0.33 else 1.0
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    tx, ty = rng.uniform(-5, 5, 2)
    a, b, d, e = c * flip, s * flip, -s, c
    centre = picture.width / 2
    matrix = (a, b, centre - a * (centre + tx) - b * (centre + ty), d, e, centre - d * (centre + tx) - e * (centre + ty))
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
