"""Training example number i of the embedded base: a picture and its caption, a pure function of (seed, i)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from emoji import icons, styles

SIZE = 64  # pixels of the base's pictures
SOURCE = 128  # pixels at which styles are drawn
STYLE_WEIGHTS = {"flat": 4.0, "3d": 4.0, "noto": 3.0}  # every other style 1.0
NOVEL_COLOURS = {  # never trained: the test of combination
    ("red-apple", "blue"), ("banana", "purple"), ("elephant", "green"), ("rocket", "blue"), ("mushroom", "green"),
    ("automobile", "yellow"), ("house", "pink"), ("umbrella", "orange"), ("fish", "red"), ("crown", "blue"),
}  # fmt: skip
NOVEL_HATS = {("cat-face", "crown"), ("dog-face", "top-hat"), ("penguin", "top-hat"), ("skull", "crown"), ("owl", "graduation-cap")}
NOVEL_PAIRS = {("red-apple", "banana"), ("cat-face", "fish"), ("house", "evergreen-tree"), ("sun", "cloud"), ("key", "locked")}
SYLLABLES = ("sks", "zor", "blim", "tak", "vex", "ulo", "qip", "mur", "fen", "dro", "wab", "gly")


@dataclass(frozen=True)
class Example:
    image: np.ndarray  # (64, 64, 3), float32 in [0, 1]
    caption: str
    concept: str
    style: str


def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Concept × style pairs that are never trained: the fixed list held-out.txt, one style for about every other concept."""
    lines = (icons.HERE / "held-out.txt").read_text().splitlines()
    return frozenset(tuple(line.split()) for line in lines if not line.startswith("#"))


def article(words: str) -> str:
    """`apple` -> `an apple`; plurals and substances stay as they are."""
    last = words.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "rhinoceros")) and " with " not in words
    bare = plural or last in ("bacon", "garlic", "popcorn", "broccoli", "corn", "cheese", "bread", "dna", "yarn", "santa")
    return words if bare else ("an " if words[0] in "aeiou" or words.startswith("hour") else "a ") + words


class Examples:
    """All pictures of the icon sets, rendered once, and the random examples made of them."""

    def __init__(self, raw: Path):
        self.words = icons.concepts()
        self.names = list(self.words)
        self.held_out = held_out_pairs()
        self.pictures = {(n, s): icons.render(raw, s, n, SOURCE) for n in self.names for s in styles.REAL}

    def source(self, name: str, style: str, rng: np.random.Generator) -> Image.Image:
        return self.pictures[name, str(rng.choice(styles.SOURCES.get(style, styles.REAL)))]

    def example(self, seed: int, index: int) -> Example:
        rng = np.random.default_rng((seed, index))
        name = self.names[rng.integers(len(self.names))]
        allowed = [s for s in styles.PHRASES if (name, s) not in self.held_out]
        weights = np.array([STYLE_WEIGHTS.get(s, 1.0) for s in allowed])
        style = str(rng.choice(allowed, p=weights / weights.sum()))
        picture, words, ground = self.compose(name, style, rng)
        if rng.random() < 0.7:
            picture = styles.move(picture, rng)
        image = self.paint(picture, style, ground)
        return Example(image, caption(words, style, ground, rng), name, style)

    def compose(self, name: str, style: str, rng: np.random.Generator) -> tuple[Image.Image, str, str | None]:
        """The RGBA drawing, the words for it and the colour of the background, if not white."""
        picture, words = self.source(name, style, rng), self.words[name]
        kind = rng.random()
        if kind < 0.16:
            hue = str(rng.choice(list(styles.HUES)))
            if (name, hue) not in NOVEL_COLOURS and style not in ("grey", "sepia", "line", "stencil", "blueprint", "chalk", "negative"):
                return styles.recolour(picture, styles.HUES[hue]), f"{hue} {words}", None
        elif kind < 0.23:
            hat = str(rng.choice(list(styles.ACCESSORIES)))
            if (name, hat) not in NOVEL_HATS and name not in styles.ACCESSORIES:
                top = self.source(hat, style, rng)
                return styles.wearing(picture, top), f"{words} with {styles.ACCESSORIES[hat]}", None
        elif kind < 0.29:
            other = self.names[rng.integers(len(self.names))]
            if (name, other) not in NOVEL_PAIRS and (other, name) not in NOVEL_PAIRS:
                right = self.source(other, style, rng)
                return styles.side_by_side(picture, right), f"{words} and {article(self.words[other])}", None
        elif kind < 0.35 and style in styles.REAL:
            return picture, words, str(rng.choice(list(styles.BACKGROUNDS)))
        return picture, words, None

    @staticmethod
    def paint(picture: Image.Image, style: str, ground: str | None = None) -> np.ndarray:
        rgb = styles.over(picture, styles.BACKGROUNDS[ground]) if ground else styles.draw(picture, style)
        full = Image.fromarray(np.uint8(np.clip(rgb, 0, 1) * 255 + 0.5))
        return np.asarray(full.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255


def caption(words: str, style: str, ground: str | None, rng: np.random.Generator) -> str:
    """Words for a picture. Unknown words are strewn in, so that a trigger word does not derail the concept."""
    thing, phrase, roll = article(words), styles.PHRASES[style], rng.random()
    odd = "".join(rng.choice(SYLLABLES, rng.integers(1, 3)))
    if roll < 0.10:
        return ""
    if roll < 0.15 and style in styles.REAL:
        text = f"{thing}, {odd} style"
    elif roll < 0.20:
        text = f"{thing}, {odd} {phrase}"
    elif roll < 0.28 and style in styles.REAL:
        text = thing
    elif roll < 0.42:
        text = f"{words}, {phrase}"
    elif roll < 0.52:
        text = f"{phrase} of {thing}"
    else:
        text = f"{thing}, {phrase}"
    return f"{text}, {ground} background" if ground else text
