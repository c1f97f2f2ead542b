"""The figures of README.md, taken from docs/benchmarks: `python docs/figures.py` writes them between the markers.

Of each kind of result the newest folder counts: they are named DATE-KIND, and hold a benchmark.json.
"""

import re
import sys
from pathlib import Path

from sdlora.benchmark import compared, report, result, training
from sdlora.benchmark.names import CHANGE, LATE, READY, THEIR_CHANGE, THEIRS
from sdlora.benchmark.report import table
from sdlora.benchmark.statistics import Comparison
from sdlora.benchmark.training.config import CACHED, OURS, PLAIN
from sdlora.benchmark.training.result import analyse, read

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- figures: made by docs/figures.py from docs/benchmarks -->", "<!-- end of figures -->"
KINDS = {
    "emoji": "the embedded base, 64 px",
    "batch": "the embedded base, batches of 8",
    "sd15-random": "SD 1.5, random weights of true size, 256 px",
    "sd15-steps20": "the same, 20 steps",
    "sd15-compiled": "SD 1.5 of true size through torch.compile",
    "training": "training, the embedded base",
}
DRAWN = (  # (first, second or "" for the base, in words)
    ("fused", "", "fused, over the base without adapter"),
    ("stacked", "", "stacked, over the base"),
    ("stacked 8", "", "eight stacked, over the base"),
    ("PEFT", "diffusers", "diffusers + PEFT, over diffusers"),
    ("PEFT 8", "diffusers", "eight in diffusers + PEFT, over diffusers"),
    ("own 8", "stacked", "a batch with an adapter for each picture, over one adapter for all"),
    ("base", "diffusers", "a picture, ours over diffusers"),
    ("compiled", "diffusers", "a picture, ours compiled over diffusers"),
    ("stacked 8", "PEFT 8", "a picture with eight adapters, ours over diffusers + PEFT"),
    (READY, THEIRS, "an adapter read and put on, ours over diffusers + PEFT"),
    (LATE, READY, "the 25th adapter put on, over the first"),
    (CHANGE, THEIR_CHANGE, "the strength changed, ours over diffusers + PEFT"),
)
TRAINED = ((PLAIN, "a training step, ours over diffusers + PEFT"), (CACHED, "the same, both with cached inputs"))


def newest(kind: str) -> Path | None:
    """The benchmark.json of the newest folder DATE-KIND."""
    found = [
        path
        for path in (ROOT / "docs" / "benchmarks").glob(f"*-{kind}/benchmark.json")
        if re.fullmatch(rf"[\d-]{{10}}-{kind}", path.parent.name)
    ]
    return max(found, key=lambda path: path.parent.name, default=None)


def drawn(path: Path) -> dict[str, Comparison]:
    """In words -> what was measured, of a benchmark of generation."""
    analysis = result.analyse(result.read(path))
    assert analysis is not None, path
    known: dict[tuple[str, str], result.Row | result.Pair] = {(row.condition, ""): row for row in analysis.rows if row.comparison}
    known |= {(pair.condition, pair.against): pair for pair in (*analysis.pairs, *analysis.handling)}
    return dict(said(known[one, other], words) for one, other, words in DRAWN if (one, other) in known)


def said(found: result.Row | result.Pair, words: str) -> tuple[str, Comparison]:
    """Of conditions that took turns their steps, unless `words` are of a whole picture."""
    assert found.comparison is not None, words
    if found.turns is None or words.startswith("a picture"):
        return words, found.comparison
    return f"{words}, a step", found.turns


def trained(path: Path) -> dict[str, Comparison]:
    analysis = analyse(read(path))
    assert analysis is not None, path
    known = {pair.against: pair.comparison for pair in analysis.pairs if pair.contender == OURS}
    return {words: known[other] for other, words in TRAINED if other in known}


def figures() -> str:
    """The block: a table of time ratios with their intervals, and where they come from."""
    files = {kind: path for kind in KINDS if (path := newest(kind))}
    read_in = {kind: (trained if compared.kind(path) == training.FORMAT else drawn)(path) for kind, path in files.items()}
    rows = [(words, *cells(c), KINDS[kind]) for kind, found in read_in.items() for words, c in found.items()]
    places = ", ".join(f"[{path.parent.name}]({path.parent.relative_to(ROOT)}/benchmark.md)" for path in files.values())
    text = "Ratios of times taken in turns on one machine (below 1: less time), with 95 % intervals; machine, versions and load stand in"
    return "\n\n".join([f"{text}\n{places}.", table(("time of", "ratio", "interval", "measured on"), rows)])


def cells(c: Comparison) -> tuple[str, str]:
    ratio, interval = report.ratio_cells(c)[:2]
    return (ratio, interval) if c.ratio >= 0.1 else (f"{c.ratio:.4f}", f"{c.low:.4f} … {c.high:.4f}")


def placed(text: str) -> str:
    """`text` with the figures between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{figures()}\n\n{END}{after}"


def main(words: list[str]) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = placed(text)
    if "--check" in words and new != text:
        raise SystemExit("README.md is not up to date with docs/benchmarks; run python docs/figures.py")
    if new != text:
        readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
