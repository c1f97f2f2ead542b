"""Which layers get an update: named groups, one row of a table each."""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from sdlora.errors import SdloraError, nearest
from sdlora.layers import named_layers

TARGETS = {
    "attention": r"unet\..*\.attn\d+\.to_(q|k|v|out\.0)",
    "feed_forward": r"unet\..*\.ff\.net\.(0\.proj|2)",
    "projections": r"unet\..*\.proj_(in|out)",
    "convolutions": r"unet\..*\.(conv1|conv2|conv_shortcut|time_emb_proj|(down|up)samplers\.\d+\.conv)",
    "text_attention": r"text_encoder\..*\.self_attn\.(q|k|v|out)_proj",
    "text_mlp": r"text_encoder\..*\.mlp\.fc[12]",
}
DEFAULT = ("attention",)


def select(modules: Mapping[str, nn.Module], targets: Iterable[str] = DEFAULT) -> list[str]:
    """The names of the layers that `targets` (keys of TARGETS) stand for, in the model's order."""
    targets = [targets] if isinstance(targets, str) else list(targets)
    for target in targets:
        if target not in TARGETS:
            raise SdloraError(f"unknown target {target!r}{nearest(target, TARGETS)}")
    names = list(named_layers(modules))
    for target in targets:
        if not any(re.fullmatch(TARGETS[target], name) for name in names):
            raise SdloraError(f"the target {target} has no layer in {', '.join(modules)}; leave it out, or give the component that has it")
    return [name for name in names if any(re.fullmatch(TARGETS[target], name) for target in targets)]
