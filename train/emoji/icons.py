"""SVG icon sets from npm → RGBA pictures. Fluent (MIT) and Noto (Apache-2.0), rendered with resvg."""

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import resvg_py
from PIL import Image

HERE = Path(__file__).parent
PACKAGES = {  # short name -> npm package @iconify-json/…, pinned so that the recipe draws the same pictures
    "flat": ("fluent-emoji-flat", "1.2.6"),
    "3d": ("fluent-emoji", "1.2.7"),
    "noto": ("noto", "1.2.9"),
    "contrast": ("fluent-emoji-high-contrast", "1.2.6"),
}
HELD_OUT = ("robot", "octopus", "unicorn", "t-rex", "jack-o-lantern", "alien")  # concepts kept for adapters


def concepts() -> dict[str, str]:
    """Icon name -> the words that stand for it in a caption, in the order of concepts.txt."""
    lines = [line for line in (HERE / "concepts.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = (line.partition("=") for line in lines)
    return {icon: words or icon.replace("-", " ") for icon, _, words in pairs}


@lru_cache
def icon_set(raw: Path, name: str) -> dict:
    """The icons.json of one set, read from the npm tarball `iconify-json-NAME-VERSION.tgz` in `raw`."""
    package, version = PACKAGES[name]
    path = raw / f"iconify-json-{package}-{version}.tgz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run `npm pack @iconify-json/{package}@{version}` in {raw}")
    with tarfile.open(path) as tar:
        return json.load(tar.extractfile("package/icons.json"))


def render(raw: Path, name: str, icon: str, size: int) -> Image.Image:
    """One icon as RGBA, size × size pixels, transparent where nothing is drawn."""
    icons = icon_set(raw, name)
    entry = icons["icons"][icon]
    box = entry.get("width", icons.get("width", 16)), entry.get("height", icons.get("height", 16))
    body = entry["body"].replace("currentColor", "#000000")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {box[0]} {box[1]}" width="{size}" height="{size}">{body}</svg>'
    return Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))).convert("RGBA")
