"""How strongly an adapter acts: η as a number, per component, per block of the U-Net, and as a function of the step.

One grammar for Python, the command line, TOML and `<lora:NAME:…>` tags:

    0.8                              everywhere
    0.5:1                            text encoders : U-Net, as AUTOMATIC1111 has it
    unet=0.8:text_encoder=0.5        per component; also text_encoder_2, and te for all text encoders
    0.8:mid=0:up=0.3                 per block of the U-Net, all its layers: down (or in), mid (or middle), up (or out)
    0.8:up.1=0.3:down.2.0=1          up_blocks.1; in down_blocks.2, the first resnet and the attention behind it
    0.8@0-0.4,0.2@0.4-1              by the step, as fractions of the run; 0 where nothing is said
    unet=1@0-0.5:te=0.7              all together
    0.8:lbw=1,0,0,0,1,1,…            times a factor for each block, as the LoRA block weight extension has it: sdlora/blocks.py

The most exact word wins: block over component over everywhere; what is not mentioned has 1. A number replaces, it does not multiply,
but for those of lbw.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdlora import blocks
from sdlora.errors import SdloraError, nearest

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
BLOCKS = ("down", "mid", "up")
TEXT = "te"  # all text encoders
VECTOR = "lbw"
TIMES = ("start", "stop", "step")  # of that extension's: numbers of steps
EVERYWHERE = ""
OTHER_NAMES = {"in": "down", "middle": "mid", "out": "up", "te1": "text_encoder", "te2": "text_encoder_2"}
BLOCK = re.compile(r"(down|up)\.(\d{1,2})(?:\.(\d{1,2}))?")
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
FRACTION = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
PIECE = re.compile(rf"({NUMBER})(?:@({FRACTION})-({FRACTION}))?")
LAYER = {  # what a layer of the U-Net has to begin with to be in a block; the convolutions at the ends belong to the outermost blocks
    "down": r"unet\.(down_blocks|conv_in)\b",
    "mid": r"unet\.mid_block\b",
    "up": r"unet\.(up_blocks|conv_out)\b",
}


@dataclass(frozen=True, order=True)
class Piece:
    """η from the fraction `start` of the run on, up to but without `end`."""

    value: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise SdloraError(f"a strength is {self.value}; it has to be a finite number")
        if not 0 <= self.start < self.end <= 1:
            span = f"{_plain(self.start)}-{_plain(self.end)}"
            raise SdloraError(f"the strength {_plain(self.value)} is for {span}; steps are fractions of the run, rising, from 0 to 1")


Curve = tuple[Piece, ...]  # disjoint, in the order of time; 0 between them


@dataclass(frozen=True)
class Strength:
    """η for every layer and step; parse(str(x)) == x."""

    curves: tuple[tuple[str, Curve], ...] = ()  # by key, sorted; nothing said is 1 everywhere
    vector: tuple[float, ...] = ()  # factors of the blocks, as sdlora/blocks.py counts them; none is 1 for all

    def __post_init__(self) -> None:
        if self.vector:
            blocks.check(self.vector)
        curves = {key: tuple(sorted(curve, key=lambda piece: piece.start)) for key, curve in self.curves}
        if len(curves) < len(self.curves):
            raise SdloraError("a strength names the same part twice; keep one of them")
        for key, curve in curves.items():
            check_key(key)
            if not curve:
                raise SdloraError(f"the strength of {key or 'everything'} is empty; write 0 for none")
            for one, two in zip(curve, curve[1:], strict=False):
                if two.start < one.end:
                    raise SdloraError(f"the strengths {_printed((one, two))} overlap; let the second begin where the first ends")
        if curves.get(EVERYWHERE) == constant(1.0):
            del curves[EVERYWHERE]  # it is what holds anyway
        object.__setattr__(self, "curves", tuple(sorted(curves.items())))

    def curve(self, layer: str) -> Curve:
        """What governs the layer with this canonical name ("unet.….to_q")."""
        curves = dict(self.curves)
        fitting = [key for key in curves if governs(key, layer)]
        curve = curves[max(fitting, key=_exactness)] if fitting else constant(1.0)
        factor = blocks.factor(self.vector, layer) if self.vector else 1.0
        return curve if factor == 1 else tuple(replace(piece, value=piece.value * factor) for piece in curve)

    def at(self, fraction: float, layer: str) -> float:
        """η of `layer` at step i of n, where `fraction` is i / n with i from 0."""
        return value_at(self.curve(layer), fraction)

    @property
    def number(self) -> float | None:
        """The one number that this strength is, if it is one."""
        if self.vector:
            return None
        if not self.curves:
            return 1.0
        same = len(self.curves) == 1 and self.curves[0][0] == EVERYWHERE and is_constant(self.curves[0][1])
        return self.curves[0][1][0].value if same else None

    @property
    def stepwise(self) -> bool:
        """Whether it changes with the step anywhere."""
        return not all(is_constant(curve) for _, curve in self.curves)

    def __str__(self) -> str:
        """In the grammar, as short as it goes: Strength(…) -> "0.5:mid=0"."""
        curves = dict(self.curves)
        vector = f":{VECTOR}={','.join(map(_plain, self.vector))}" if self.vector else ""
        if not curves:
            return f"1{vector}"
        both = {key: curves[key] for key in COMPONENTS[1:] if key in curves}
        if len(both) == 2 and len(set(both.values())) == 1 and "unet" in curves:
            curves = {TEXT if key == "text_encoder" else key: curve for key, curve in curves.items() if key != "text_encoder_2"}
        return ":".join(f"{key}={_printed(curve)}" if key else _printed(curve) for key, curve in curves.items()) + vector


def strength(value: "float | str | Mapping[str, float | str] | Strength") -> Strength:
    """A Strength from what Python and TOML may give: a number, a text in the grammar, or a table by component and block.

    strength({"unet": 0.8, "text_encoder": "0.5@0-0.4", "mid": 0})
    """
    match value:
        case Strength():
            return value
        case str():
            return parse(value)
        case bool():
            raise SdloraError(f"a strength is {value}; it is a number such as 0.8, a text such as 'unet=0.8:te=0.5' or a table of these")
        case int() | float():
            return Strength(((EVERYWHERE, constant(float(value))),))
        case Mapping():
            named = {str(key): _curve(str(number), f"{key}={number}") for key, number in value.items() if key != VECTOR}
            return _keyed(named, _vector(value[VECTOR]) if VECTOR in value else ())
    raise SdloraError(f"a strength is {value!r}; it is a number such as 0.8, a text such as 'unet=0.8:te=0.5' or a table of these")


def parse(text: str) -> Strength:
    """The grammar of this file's head. SdloraError says what is wrong with which part."""
    positional: list[Curve] = []
    named: dict[str, Curve] = {}
    vector: tuple[float, ...] = ()
    for part in text.split(":"):
        key, equals, numbers = (word.strip() for word in part.rpartition("="))
        if equals:
            if key in named or (key == VECTOR and vector):
                raise SdloraError(f"the strength {text!r} names {key} twice; keep one of them")
            if key == VECTOR:
                vector = blocks.read(numbers, text)
                continue
            named[key] = _curve(numbers, text)
        else:
            positional.append(_curve(numbers, text))
    if len(positional) > 2:
        raise SdloraError(f"the strength {text!r} has {len(positional)} plain numbers; two are the text encoders' and the U-Net's")
    if len(positional) == 2:
        named = {TEXT: positional[0], "unet": positional[1], **named}
    elif positional:
        named = {EVERYWHERE: positional[0], **named}
    return _keyed(named, vector)


def constant(value: float) -> Curve:
    return (Piece(value),)


def is_constant(curve: Curve) -> bool:
    return len({value_at(curve, fraction) for fraction in (0.0, *(p.start for p in curve), *(p.end for p in curve if p.end < 1))}) == 1


def value_at(curve: Curve, fraction: float) -> float:
    """η at `fraction`, from 0 to 1; the run's very end belongs to the last piece."""
    inside = min(fraction, math.nextafter(1.0, 0.0))
    return next((piece.value for piece in curve if piece.start <= inside < piece.end), 0.0)


def governs(key: str, layer: str) -> bool:
    """Whether what is said of `key` holds for the layer with this canonical name."""
    if key == EVERYWHERE or key in COMPONENTS:
        return key == EVERYWHERE or layer.startswith(f"{key}.")
    if key in LAYER:
        return bool(re.match(LAYER[key], layer))
    block, number, *position = key.split(".")
    path = rf"unet\.{block}_blocks\.{number}\." + (rf"(resnets|attentions)\.{position[0]}\." if position else "")
    return bool(re.match(path, layer))


def check_key(key: str) -> None:
    if key in (EVERYWHERE, *COMPONENTS, *BLOCKS):
        return
    if not (match := BLOCK.fullmatch(key)) or any(number and str(int(number)) != number for number in match.groups()[1:]):
        if key in TIMES:
            raise SdloraError(f"a strength with {key}=; steps are fractions of the run here: 0.8@0.25-1 begins with the second quarter")
        valid = (*COMPONENTS, TEXT, *BLOCKS, "down.0", "up.1.0", VECTOR)
        raise SdloraError(f"a strength for {key!r}, which is no part of the model{nearest(key, valid)}")


def _keyed(curves: Mapping[str, Curve], vector: tuple[float, ...] = ()) -> Strength:
    """Other names made ours. `te` without `unet` is said of the U-Net too: AUTOMATIC1111 reads <lora:NAME:te=0.5> so."""
    result: dict[str, Curve] = {}
    for key, curve in curves.items():
        key = OTHER_NAMES.get(key, key)
        if key in result:
            raise SdloraError(f"a strength names {key} twice; keep one of them")
        result[key] = curve
    if TEXT in result:
        text = result.pop(TEXT)
        if EVERYWHERE in result and "unet" not in result:
            one, two = _printed(result[EVERYWHERE]), _printed(text)
            raise SdloraError(
                f"the strength {one} beside te={two} has no effect, since te alone is the U-Net's too; write te={two}:unet={one}"
            )
        result = {"unet": text, "text_encoder": text, "text_encoder_2": text, **result}
    return Strength(tuple(result.items()), vector)


def _vector(said: object) -> tuple[float, ...]:
    """Of a text or a list."""
    text = said if isinstance(said, str) else ",".join(map(str, said)) if isinstance(said, list | tuple) else str(said)
    return blocks.read(text, f"{VECTOR}={text}")


def _curve(text: str, whole: str) -> Curve:
    """ "0.8" or "0.8@0-0.4,0.2@0.4-1"."""
    pieces = []
    for part in text.split(","):
        match = PIECE.fullmatch(part.strip())
        if not match or (match[2] is None and "," in text):
            raise SdloraError(
                f"the strength {whole!r}: {part.strip()!r} is no strength; write 0.8, or 0.8@0-0.4,0.2@0.4-1 for parts of the run"
            )
        pieces.append(Piece(float(match[1])) if match[2] is None else Piece(float(match[1]), float(match[2]), float(match[3])))
    return tuple(pieces)


def _exactness(key: str) -> int:
    return 0 if key == EVERYWHERE else 1 if key in COMPONENTS else 2 + key.count(".")


def _printed(curve: Curve) -> str:
    if len(curve) == 1 and (curve[0].start, curve[0].end) == (0, 1):
        return _plain(curve[0].value)
    return ",".join(f"{_plain(p.value)}@{_plain(p.start)}-{_plain(p.end)}" for p in curve)


def _plain(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
