"""Score the embedded base and style adapters with a judge trained on the real drawings.

python train/evaluate.py judge --raw RAW --work WORK            # train the judge, once
python train/evaluate.py base --work WORK                       # sheets and retrieval -> docs/base/
python train/evaluate.py style FILE --work WORK --trigger "sks style"   # a style adapter over strengths
"""

import argparse
import json
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image

from emoji import icons, judge, styles
from emoji.examples import article, held_out_pairs
from sdlora import files, models
from sdlora.generation import Request, generate
from sdlora.sheet import contact_sheet

HERE = Path(__file__).parent / "emoji"
JUDGE_PICTURES, JUDGE_STEPS = 35_000, 700
STYLE_FOLDER = Path(__file__).parent.parent / "datasets/high-contrast"
_drawings: judge.Drawings | None = None


def open_drawings(raw: Path) -> None:
    global _drawings
    _drawings = judge.Drawings(raw)


def one_drawing(index: int) -> tuple[np.ndarray, int, int]:
    return _drawings.sample(1, index)


def train_judge(raw: Path, work: Path) -> None:
    """Draw the judge's pictures, train it, and say how well it reads drawings that it was not trained on."""
    pool = work / "judge-pictures.npz"
    if not pool.exists():
        with Pool(2, open_drawings, (raw,)) as workers:
            rows = list(workers.imap(one_drawing, range(JUDGE_PICTURES + 1000), chunksize=256))
        images, concepts, kinds = (np.array(column) for column in zip(*rows))
        np.savez(pool, images=images, concepts=concepts, kinds=kinds)
    data = np.load(pool)
    images, concepts, kinds = data["images"], data["concepts"], data["kinds"]
    trained = judge.train((images[:-1000], concepts[:-1000], kinds[:-1000]), work / "judge.pt", JUDGE_STEPS)
    found = judge.verdicts(trained, images[-1000:])
    truth = [(judge.names()[c], judge.STYLES[s]) for c, s in zip(concepts[-1000:], kinds[-1000:])]
    print("judge on 1000 fresh variants:", shares(found, truth))


def shares(found: Sequence[tuple[str, str]], truth: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Share of right concepts, right styles and both."""
    concept = [f[0] == t[0] for f, t in zip(found, truth)]
    style = [f[1] == t[1] for f, t in zip(found, truth)]
    both = [a and b for a, b in zip(concept, style)]
    return {"concept": np.mean(concept).item(), "style": np.mean(style).item(), "both": np.mean(both).item(), "n": len(found)}


def draw(
    components: models.Components, prompts: Sequence[str], seeds: Sequence[int], weighted=(), guidance: float = 5.0
) -> list[Image.Image]:
    requests = [Request(prompt=p, seed=s, guidance=guidance) for p, s in zip(prompts, seeds)]
    return [p.image for p in generate(components, requests, weighted=list(weighted), apply="fused" if weighted else "stacked")]


def stack(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def rows(items: Sequence, width: int) -> list[list]:
    return [list(items[i : i + width]) for i in range(0, len(items), width)]


def lines(name: str) -> list[str]:
    return [line for line in (HERE / name).read_text().splitlines() if line and not line.startswith("#")]


def evaluate_base(base: str, work: Path, output: Path) -> None:
    """The sheets of prompts, novel combinations and seeds, and the retrieval of held-out and trained pairs."""
    output.mkdir(parents=True, exist_ok=True)
    components, eye = models.load(base), judge.load(work / "judge.pt")
    for name, width in (("prompts", 8), ("novel", 5)):
        prompts = lines(f"{name}.txt")
        pictures = draw(components, prompts, [1] * len(prompts))
        contact_sheet(rows(pictures, width), [], [], output / f"{name}.png", cell_labels=rows(prompts, width))
    seeds = lines("prompts.txt")[:5] + ["a frog", "a rocket", "a house, pixel art"]
    pictures = draw(components, [p for p in seeds for _ in range(4)], [1, 2, 3, 4] * len(seeds))
    contact_sheet(rows(pictures, 4), seeds, [f"seed {i}" for i in range(1, 5)], output / "seeds.png")
    words = icons.concepts()
    trained = [(n, s) for n in words for s in styles.PHRASES if (n, s) not in held_out_pairs()]
    rng = np.random.default_rng(0)
    picks = [trained[i] for i in rng.choice(len(trained), 200, replace=False)]
    result = {}
    for label, pairs in (("held out", sorted(held_out_pairs())), ("trained", picks)):
        prompts = [f"{article(words[n])}, {styles.PHRASES[s]}" for n, s in pairs]
        result[label] = shares(judge.verdicts(eye, stack(draw(components, prompts, range(len(pairs))))), pairs)
        print(label, result[label], flush=True)
    (output / "retrieval.json").write_text(json.dumps(result, indent=2) + "\n")


def style_concepts() -> list[str]:
    """Concepts that are not in the style folder."""
    inside = {path.stem for path in STYLE_FOLDER.glob("*.png")}
    return [name for name in icons.concepts() if name not in inside]


def evaluate_style(base: str, file: Path, trigger: str, work: Path, count: int) -> dict:
    """Scores at strengths 0, 0.25, … 1 on concepts outside the folder: in the style, among the four drawn sets and among all
    fourteen styles (the base's own stencil and line drawings look much like it); and right concepts."""
    components, eye = models.load(base), judge.load(work / "judge.pt")
    adapter, words = files.load(file, components.modules), icons.concepts()
    names = style_concepts()[:: max(1, len(style_concepts()) // count)][:count]
    prompts = [f"{article(words[n])}, {trigger}" for n in names]
    truth, result = [(n, "contrast") for n in names], {}
    for eta in (0.0, 0.25, 0.5, 0.75, 1.0):
        pictures = stack(draw(components, prompts, range(len(names)), [(adapter, eta)]))
        drawn, every = (shares(judge.verdicts(eye, pictures, among), truth) for among in (judge.DRAWN, judge.STYLES))
        result[eta] = {"drawn": drawn["style"], "all": every["style"], "concept": drawn["concept"], "n": len(names)}
        print(f"η = {eta}: in the style {drawn['style']:.0%}, of 14 {every['style']:.0%}; right concept {drawn['concept']:.0%}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("judge", "base", "style"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--raw", type=Path, default=Path("raw"))
    parser.add_argument("--work", type=Path, default=Path("runs/base"))
    parser.add_argument("--base", default="emoji")
    parser.add_argument("--output", type=Path, default=Path("docs/base"))
    parser.add_argument("--trigger", default="sks style")
    parser.add_argument("--count", type=int, default=100)
    o = parser.parse_args()
    match o.what:
        case "judge":
            train_judge(o.raw, o.work)
        case "base":
            evaluate_base(o.base, o.work, o.output)
        case "style":
            evaluate_style(o.base, o.file, o.trigger, o.work, o.count)


if __name__ == "__main__":
    main()
