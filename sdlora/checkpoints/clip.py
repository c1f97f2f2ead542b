"""CLIP's text encoder by the names of single files: transformers' own under a prefix (ViT-L), or OpenCLIP's (ViT-H, ViT-bigG).

OpenCLIP: open_clip.transformer of github.com/mlfoundations/open_clip.
"""

from collections.abc import Iterable

from sdlora.checkpoints.links import How, Link

LEVEL = "text_model."  # a level of names that transformers has, or not, by version
ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
THIRDS = ("q_proj", "k_proj", "v_proj")


def plain(path: str) -> str:
    """The parameter's name without the level that some versions of transformers have."""
    return path.removeprefix(LEVEL)


def open_clip(path: str) -> Link:
    """OpenCLIP's tensor for the parameter `path`, a plain name."""
    if path in ENDS:
        return Link(path, ENDS[path])
    if path == "text_projection.weight":
        return Link(path, "text_projection", How.TRANSPOSED)
    _, _, number, rest = path.split(".", 3)  # encoder.layers.N.…
    head, _, last = rest.rpartition(".")
    block = f"transformer.resblocks.{number}."
    if head in LAYER:
        return Link(path, f"{block}{LAYER[head]}.{last}")
    return Link(path, f"{block}attn.in_proj_{last}", How.THIRD, THIRDS.index(head.removeprefix("self_attn.")))


def open_clip_links(names: Iterable[str], prefix: str) -> list[Link]:
    """The file's tensor for each of the plain `names`, where the file has OpenCLIP's names under `prefix`."""
    found = [open_clip(path) for path in names]
    return [Link(link.ours, prefix + link.theirs, link.how, link.third) for link in found]


def transformers_links(names: Iterable[str], prefix: str) -> list[Link]:
    """The file's tensor for each of the plain `names`, where the file has transformers' names under `prefix`."""
    return [Link(path, prefix + (path if path == "text_projection.weight" else LEVEL + path)) for path in names]
