"""What stays of a run: numbered pictures that carry their settings, and a contact sheet.

They are called 0001-seed7.png, 0002-seed8.png, … (or .jpg, .webp); a run goes on behind the highest number in the folder, so that no run
overwrites another's pictures. The sheet carries the numbers of its pictures: sheet-0001-0004.png.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from sdlora import __version__, images
from sdlora.families import FAMILIES
from sdlora.generation.batch import sizes
from sdlora.generation.facts import facts
from sdlora.generation.generate import Picture
from sdlora.generation.noise import source_name
from sdlora.generation.passes import size
from sdlora.generation.request import Request
from sdlora.models import Components
from sdlora.sheet import contact_sheet
from sdlora.strength import Strength, strength

NUMBERED = re.compile(r"(?:sheet-\d+-)?(\d+)(?:-.*)?\.(?:png|jpg|webp)")
COLUMNS = 8  # pictures in a row of the sheet, at the most

Saved = tuple[Path, Picture]


def save(picture: Picture, folder: Path, settings: dict[str, Any], kind: str = "png", quality: int | None = None) -> Path:
    """Write `picture` under the next free number in `folder`; the path."""
    path = folder / f"{next_number(folder):04d}-seed{picture.request.seed}{images.FORMATS[kind]}"
    images.save(picture.image, path, settings, quality)
    return path


def next_number(folder: Path) -> int:
    return max((number(entry.name) for entry in folder.iterdir()), default=0) + 1


def number(name: str) -> int:
    """Of a picture or a sheet by its file name, 0 for others."""
    match = NUMBERED.fullmatch(name)
    return int(match[1]) if match else 0


def settings(components: Components, request: Request, apply: str = "stacked") -> dict[str, Any]:
    """All that it takes to draw the picture again, for JSON. The adapters are `request.adapters`, which have to be files."""
    height, width = size(components, request)
    method, told = request.method, sizes(components, request)
    xl = {"original_size": told.original, "crop": told.crop, "target_size": told.target} if FAMILIES[components.family].pooled else {}
    return {
        "prompt": request.prompt,
        "negative": request.negative,
        "seed": request.seed,
        "steps": request.steps,
        "sampler": method.sampler.name,
        "schedule": method.schedule,
        **dict(method.options),
        "noise": source_name(request.noise),
        "guidance": request.guidance,
        "width": width,
        "height": height,
        **xl,
        **facts(components, request),
        "base": _base(components),
        "adapters": [*(_adapter(path, strength(eta)) for path, eta in request.adapters), *_tagged(request)],
        "apply": apply,
        "precision": str(components.dtype).removeprefix("torch."),
        "device": components.device.type,
        "version": f"sdlora {__version__}",
        **({"clip_skip": request.clip_skip} if request.clip_skip != 1 else {}),
        **({"emphasis": request.emphasis} if request.emphasis != "Original" else {}),
    }


def _base(components: Components) -> dict[str, Any]:
    """ "hash" is of all weights; "model" and that of "vae" are of the files, by which AUTOMATIC1111 names them."""
    vae = {"vae": dict(zip(("name", "hash"), components.vae_file, strict=True))} if components.vae_file else {}
    own = {"model": components.own_hash} if components.vae_file else {}
    tiling = {"tiling": True} if getattr(components.vae, "use_tiling", False) else {}
    return {"name": components.name, "hash": components.hash, "prediction": components.prediction, **own, **vae, **tiling}


def _adapter(path: str, eta: Strength) -> dict[str, Any]:
    return {"file": Path(path).name, "strength": str(eta) if eta.number is None else eta.number, **hashes(path)}


def _tagged(request: Request) -> list[dict[str, Any]]:
    """The adapters that the prompt's tags stand for; "tag" says that the prompt has them already."""
    strengths = {tag.name: tag.strength for tag in request.tags}
    return [{**_adapter(path, strengths[name]), "tag": name} for name, path in request.tagged]


def hashes(path: str | Path) -> dict[str, str]:
    """sha256 of the adapter file, and AUTOMATIC1111's short hash: 12 digits of the sha256 of what follows the header."""
    stat = Path(path).stat()
    return dict(_hashes(str(path), stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _hashes(path: str, changed: int, length: int) -> dict[str, str]:
    data = Path(path).read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    return {"sha256": hashlib.sha256(data).hexdigest(), "hash": hashlib.sha256(tensors).hexdigest()[:12]}


def save_sheet(saved: Sequence[Saved], folder: Path) -> Path:
    """All pictures of a run on one sheet: a row per prompt and a column per seed; many seeds are broken into several rows."""
    numbers = [path.name.partition("-")[0] for path, _ in saved]
    path = folder / f"sheet-{numbers[0]}-{numbers[-1]}.png"
    groups = [list(group) for _, group in groupby((picture for _, picture in saved), lambda p: p.request.prompt)]
    rows = [group[i : i + COLUMNS] for group in groups for i in range(0, len(group), COLUMNS)]
    whole = len(rows) == len(groups) and len({tuple(p.request.seed for p in row) for row in rows}) == 1
    columns = [f"seed {p.request.seed}" for p in rows[0]] if whole else []
    labels = [_label(row, several=len(groups) > 1, seeds=not whole) for row in rows]
    contact_sheet([[p.image for p in row] for row in rows], labels, columns, path, title=_title(saved[0][1].request, len(groups)))
    return path


def _label(row: Sequence[Picture], several: bool, seeds: bool) -> str:
    first, last = row[0].request, row[-1].request
    span = f"seed {first.seed}" if first.seed == last.seed else f"seeds {first.seed} … {last.seed}"
    return "\n".join([first.prompt] * several + [span] * seeds)


def _title(request: Request, prompts: int) -> str:
    adapters = " + ".join(f"{Path(path).stem} {strength(eta)}" for path, eta in request.adapters)
    none = "adapters by the prompt" if request.tagged else "no adapter"
    facts = f"{adapters or none} · {request.method} · {request.steps} steps · guidance {request.guidance:g}"
    return facts if prompts > 1 else f"{request.prompt}\n{facts}"
