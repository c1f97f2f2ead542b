"""A folder of nasty pictures: every mode, format and defect that people's folders have, each file named after what it is."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

BROKEN = ("truncated.jpg", "truncated-too.png", "no-picture.png", "nothing.webp")  # what cannot be decoded


def scene(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth random picture, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write(folder: Path) -> Path:
    """The folder, with captions beside all pictures but those that are about captions."""
    folder.mkdir(parents=True, exist_ok=True)
    modes(folder)
    formats(folder)
    broken(folder)
    for path in sorted(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"a {path.stem}, sks style")
    return folder


def modes(folder: Path) -> None:
    rgb = scene(1)
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "black-and-white.png")
    rgb.quantize(16).save(folder / "palette.png")
    scene(2).convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.asarray(scene(3).convert("L"), np.uint16) * 257
    Image.fromarray(deep).save(folder / "sixteen-bits.png")
    Image.fromarray(deep.astype(np.float32) / 65535).save(folder / "floating.tif")
    see_through = scene(4).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(see_through.size))
    see_through.save(folder / "transparent.png")
    see_through.convert("LA").save(folder / "grey-alpha.png")
    holes = scene(5).quantize(8)
    holes.save(folder / "palette-holes.png", transparency=0)
    turned = scene(6)
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(folder / "turned.jpg", exif=exif)
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # made for other channels than the picture has
    scene(7).save(folder / "wrong-profile.png", icc_profile=wide.tobytes())
    scene(8).save(folder / "damaged-profile.png", icc_profile=b"no profile at all")


def formats(folder: Path) -> None:
    frames = [scene(seed) for seed in (10, 11, 12)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    scene(13).save(folder / "moving-too.webp", save_all=True, append_images=frames[1:], lossless=True)
    scene(14).save(folder / "modern.avif", quality=90)
    scene(15).save(folder / "old.bmp")
    scene(16).save(folder / "progressive.jpeg", progressive=True)
    scene(17, 7, 5).save(folder / "tiny.png")
    scene(18, 640, 40).save(folder / "panorama.png")
    scene(19, 40, 640).save(folder / "tower.png")


def broken(folder: Path) -> None:
    for name, format in (("truncated.jpg", "JPEG"), ("truncated-too.png", "PNG")):
        stored = BytesIO()
        scene(20, 300, 200).save(stored, format)
        (folder / name).write_bytes(stored.getvalue()[: len(stored.getvalue()) // 2])
    (folder / "no-picture.png").write_text("<html>404</html>")
    (folder / "nothing.webp").write_bytes(b"")
