"""A judge of pictures: which concept, and which style? Trained on the real drawings, never on generated ones.

It sees all concepts in all styles (the held-out pairs and the high-contrast icons too), under shifts, turns,
mirroring and blur, so that it can score what the base and its adapters draw.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from emoji import icons, styles
from emoji.examples import SIZE, SOURCE, Examples

STYLES = (*styles.PHRASES, "contrast")
DRAWN = (*styles.REAL, "contrast")  # the sets that people drew; the others are image processing


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU())


class Judge(nn.Module):
    """(n, 3, 64, 64) in [-1, 1] -> concept logits (n, concepts), style logits (n, styles)."""

    def __init__(self, concepts: int):
        super().__init__()
        widths = ((3, 32, 2), (32, 64, 1), (64, 96, 2), (96, 128, 1), (128, 192, 2), (192, 256, 1), (256, 256, 2))
        self.body = nn.Sequential(*(block(*w) for w in widths))
        self.concept, self.style = nn.Linear(256 * 4 + 256, concepts), nn.Linear(256, len(STYLES))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        quarters, mean = F.adaptive_avg_pool2d(y, 2).flatten(1), y.amax((2, 3))
        return self.concept(F.dropout(torch.cat([quarters, mean], 1), 0.2, self.training)), self.style(y.mean((2, 3)))


def names() -> list[str]:
    return [*icons.concepts(), *icons.HELD_OUT]


class Drawings:
    """Every concept in every real style, the held-out ones as well."""

    def __init__(self, raw: Path):
        self.names = names()
        sets = (*styles.REAL, "contrast")
        self.pictures = {(n, s): icons.render(raw, s, n, SOURCE) for n in self.names for s in sets}

    def draw(self, name: str, style: str, rng: np.random.Generator) -> np.ndarray:
        source = style if style == "contrast" else str(rng.choice(styles.SOURCES.get(style, styles.REAL)))
        picture = self.pictures[name, source]
        if rng.random() < 0.85:
            picture = styles.move(picture, rng)
        return Examples.paint(picture, "flat" if style == "contrast" else style)

    def sample(self, seed: int, index: int) -> tuple[np.ndarray, int, int]:
        rng = np.random.default_rng((seed, index))
        concept, style = int(rng.integers(len(self.names))), int(rng.integers(len(STYLES)))
        image = self.draw(self.names[concept], STYLES[style], rng)
        if rng.random() < 0.5:  # the base's pictures pass through a VAE and are softer
            image = soften(image, rng)
        return np.uint8(np.clip(image, 0, 1) * 255), concept, style


def soften(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = int(rng.integers(32, SIZE))
    small = Image.fromarray(np.uint8(image * 255)).resize((size, size), Image.Resampling.BILINEAR)
    back = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255
    return back + rng.normal(0, 0.02, back.shape).astype(np.float32)


def train(pool: tuple[np.ndarray, np.ndarray, np.ndarray], path: Path, steps: int) -> Judge:
    """AdamW, the rate falling to zero; the weights go to `path`."""
    torch.manual_seed(0)
    images, concepts, kinds = pool
    judge = Judge(len(names())).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.02)
    rng = np.random.default_rng(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 100) * (1 - step / steps)
        picks = np.sort(rng.integers(0, len(images), 128))
        x = torch.from_numpy(images[picks]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            concept, style = judge(x.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(concept.float(), torch.from_numpy(concepts[picks]), label_smoothing=0.05)
        loss = loss + 0.5 * F.cross_entropy(style.float(), torch.from_numpy(kinds[picks]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            right = (concept.argmax(1) == torch.from_numpy(concepts[picks])).float().mean()
            print(f"judge {step + 1}  loss {loss.item():.3f}  concept {right:.2f}", flush=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


def load(path: Path) -> Judge:
    judge = Judge(len(names()))
    judge.load_state_dict(torch.load(path, weights_only=True))
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, images: np.ndarray, among: Sequence[str] = STYLES, batch: int = 64) -> list[tuple[str, str]]:
    """uint8 pictures (n, 64, 64, 3) -> (concept, style) of each; the style is the likeliest one of `among`."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [judge(p) for p in x.split(batch)]
    columns = [STYLES.index(style) for style in among]
    concepts = torch.cat([p[0] for p in parts]).argmax(1)
    kinds = torch.cat([p[1] for p in parts])[:, columns].argmax(1)
    return [(names()[c], among[s]) for c, s in zip(concepts.tolist(), kinds.tolist())]
