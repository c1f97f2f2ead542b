"""The full-size proof without real weights: random bases of the true architecture, and what can be done with them here.

    python train/full_size.py make sd1 FOLDER      # SD 1.5, 2.1 GB in bf16; or sdxl, 6.9 GB: a folder in diffusers' layout
    python train/full_size.py check FOLDER --work WORK [--step NAME …] [--small 256]

Each step runs in a process of its own and prints its times, the whole process's wall and CPU time, and its largest resident
memory (VmHWM: pages of mapped files counted). The steps, by default all in this order:

    single, back    sdlora base convert: the folder to WORK/single.safetensors, and that to the folder WORK/back
    tensors         every tensor of the folder is in WORK/back, bit for bit, and in what diffusers itself reads of the single file
    say, say-single what U-Net, text encoders and VAE say, of the folder and of the single file, which is compared bit for bit
    train-small     two training steps at --small pixels: U-Net and, rank 4, text encoders; SDXL's with gradient checkpointing
    train-native    one training step at the base's own size, U-Net alone, with gradient checkpointing
    generate        one picture at --small pixels with the trained adapter, two steps with guidance
    generate-native one picture at the base's own size, two steps with guidance
    ours, theirs    the adapter of train-small: what the U-Net and the text encoders say with it, from sdlora, and from stock
                    diffusers + PEFT, which is compared; in bf16, if `ours` was run in fp32 before, also how far each is from that
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = ("single", "back", "tensors", "say", "say-single", "train-small", "train-native", "generate", "generate-native", "ours", "theirs")
BEGUN = time.perf_counter()
PROMPT = "picture 0, sks style"
CLOSE = {"float32": 1e-5, "bfloat16": 5e-2}  # of the largest value; bf16 has 8 bits, and hundreds of layers round one after the other


def make(kind: str, folder: Path) -> None:
    """A randomly initialised base, one component in memory at a time, from the configurations in the package."""
    import diffusers
    import torch

    from sdlora.checkpoints import configs, tokenizer
    from sdlora.families import FAMILIES

    family = FAMILIES[kind]
    classes = {**dict(family.text_encoders), "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    index: dict[str, Any] = {"_class_name": family.pipeline, "_diffusers_version": diffusers.__version__}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    for part, name in classes.items():
        start = time.perf_counter()
        library, module = built(name, configuration(kind, part))
        module.save_pretrained(folder / part, max_shard_size="100GB")
        index[part] = [library, name]
        print(f"{part}: {sum(p.numel() for p in module.parameters()):,} parameters in {time.perf_counter() - start:.1f} s", flush=True)
        del module
    for part, pad in zip(family.tokenizers, configs.packaged(kind)["pads"], strict=True):
        tokenizer.write(folder / part, pad)
        index[part] = ["transformers", "CLIPTokenizer"]
    scheduler = configuration(kind, "scheduler")
    diffusers.EulerDiscreteScheduler.from_config(scheduler).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    absent = ("feature_extractor", "image_encoder") if family.pooled else ("feature_extractor", "safety_checker")
    extra = {"force_zeros_for_empty_prompt": True} if family.pooled else {"requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index | extra | {name: [None, None] for name in absent}, indent=2) + "\n")


def configuration(kind: str, part: str) -> dict[str, Any]:
    from sdlora.checkpoints import configs

    return {key: value for key, value in configs.packaged(kind)[part].items() if not key.startswith("_")}


def built(name: str, settings: dict[str, Any]) -> tuple[str, Any]:
    """(its library, a network of class `name`) with the library's own random weights."""
    import diffusers
    import transformers

    if name.startswith("CLIP"):
        return "transformers", getattr(transformers, name)(transformers.CLIPTextConfig(**settings))
    return "diffusers", getattr(diffusers, name)(**settings)


def convert(source: Path, target: Path, config: Path | None = None) -> None:
    from sdlora.commands.base import convert as command

    command(str(source), target, config=config)
    tell()


def clips(base: Path) -> bool:
    """Whether its vocabulary is CLIP's, which a single file without a word about it has."""
    from sdlora.checkpoints import tokenizer

    return json.loads((base / "text_encoder" / "config.json").read_text())["vocab_size"] == tokenizer.SIZE


def tensors(base: Path, work: Path) -> None:
    """Folder, folder made of the single file, and diffusers' own reading of the single file; SystemExit unless all is the same."""
    import diffusers

    index = json.loads((base / "model_index.json").read_text())
    for part in sorted(path.parent.name for path in base.glob("*/*.safetensors")):
        held = weights(base / part)
        print(f"    {part}: {same(part, held, weights(work / 'back' / part))} tensors bit-equal there and back", flush=True)
        if index[part][0] != "diffusers":
            continue
        reader, where = getattr(diffusers, index[part][1]), {"config": str(base), "subfolder": part, "local_files_only": True}
        read = reader.from_single_file(str(work / "single.safetensors"), torch_dtype=next(iter(held.values())).dtype, **where)
        print(f"    {part}: {same(part, held, read.state_dict())} tensors bit-equal in diffusers' reading of the single file", flush=True)
    tell()


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same(part: str, one: dict[str, Any], other: dict[str, Any]) -> int:
    import torch

    apart = [name for name in one.keys() | other.keys() if name not in one or name not in other or not torch.equal(one[name], other[name])]
    if apart:
        raise SystemExit(f"{part}: {len(apart)} tensors differ, such as {sorted(apart)[0]}")
    return len(one)


def say(base: Path, work: Path, name: str, precision: str, config: Path | None = None) -> None:
    """What the components of `base` say, into WORK/NAME.safetensors; SystemExit if it is not finite, or all the same."""
    import torch
    from safetensors.torch import save_file

    from sdlora import conditioning, hardware, latents, models

    spent: dict[str, float] = {}
    components = timed(spent, "load", models.load)(base, dtype=hardware.dtype(precision), config=config)
    tell(**spent)
    x, t, ids = inputs()
    picture = torch.rand((1, 3, 128, 128), generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        hint = conditioning.encode_text(components, [PROMPT])
        said = {"context": hint.context, "unet": conditioning.predict(components.unet, x.to(components.dtype), t, hint, ids)}
        said |= {"encoded": latents.encode_image(components, picture), "decoded": latents.decode(components, x[..., :16, :16])}
    said |= {} if hint.pooled is None else {"pooled": hint.pooled}
    save_file({part: output.contiguous() for part, output in said.items()}, work / f"{name}.safetensors")
    for part, output in said.items():
        print(f"    {part}: {tuple(output.shape)}, standard deviation {output.float().std():.3g}, largest {output.float().abs().max():.3g}")
        if not output.isfinite().all() or not output.float().std() > 0:
            raise SystemExit(f"{part}: not finite, or all the same")
    tell()


def say_single(base: Path, work: Path, precision: str) -> None:
    """The single file by itself; a narrow base with a vocabulary of its own needs the folder's."""
    from safetensors.torch import load_file

    words = json.loads((base / "text_encoder" / "config.json").read_text())["vocab_size"]
    say(work / "single.safetensors", work, "said-single", precision, None if words == 49408 else base)
    count = same("outputs", load_file(work / "said.safetensors"), load_file(work / "said-single.safetensors"))
    print(f"    {count} outputs bit-equal to those of the folder")


def train(base: Path, work: Path, size: int, name: str, steps: int, texts: bool, thrifty: bool, precision: str) -> None:
    import numpy as np
    from PIL import Image

    from sdlora import training
    from sdlora.training import TrainConfig, session, sources

    pictures = work / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), np.uint8)).save(pictures / "0.png")
    (pictures / "0.txt").write_text(PROMPT)
    both = ("text_attention", "text_mlp", "text_attention_2", "text_mlp_2")
    targets = ("attention", *(both if (base / "text_encoder_2").exists() else both[:2])) if texts else ("attention",)
    small = {part: {"rank": 4} for part in ("text_encoder", "text_encoder_2") if texts and (base / part).exists()}
    config = TrainConfig(
        **{
            "base": str(base),
            "images": pictures,
            "output": work / name,
            "resolution": size,
            "steps": steps,
            "batch_size": 1,
            "format": "peft",
        },
        **{"targets": targets, "rank": 8, "learning_rate": 1e-2, "warmup": 0, "precision": precision, "gradient_checkpointing": thrifty},
        **small,
    )
    spent: dict[str, float] = {}
    session.models.load = timed(spent, "load", session.models.load)
    sources.encoded = timed(spent, "encode the picture", sources.encoded)
    path = training.train(config, progress=False)
    done = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    tell(**spent, **{f"step {line['number']}": line["seconds"] for line in done})
    print(f"    losses {[round(line['loss'], 4) for line in done]}, {path.stat().st_size / 2**20:.1f} MiB adapter")


def generate(base: Path, work: Path, size: int | None, precision: str) -> None:
    from sdlora import generation
    from sdlora.generation import Request

    spent: dict[str, float] = {}
    components = timed(spent, "load", generation.load)(base, "cpu", precision)
    adapter = work / "train-small" / "adapter.safetensors"
    weighted = generation.load_adapters(components, [(adapter, 1.0)] if adapter.exists() else [])
    request = Request(PROMPT, seed=1, steps=2, width=size, height=size)
    marks = [time.perf_counter()]
    picture = next(generation.generate(components, [request], weighted, callback=lambda state: marks.append(time.perf_counter())))
    end = time.perf_counter()
    picture.image.save(work / f"{picture.image.width}.png")
    tell(**spent, **{"text and step 1": marks[1] - marks[0], "step 2": marks[2] - marks[1], "decode": end - marks[2]})


def inputs() -> tuple[Any, Any, Any]:
    import torch

    x = torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([500]), torch.tensor([[256.0, 256, 0, 0, 256, 256]])


def ours(base: Path, work: Path, precision: str) -> None:
    """What sdlora says, without and with the adapter, into WORK/ours.PRECISION.safetensors."""
    import torch
    from safetensors.torch import save_file

    from sdlora import apply, conditioning, files, hardware, models

    components = models.load(base, dtype=hardware.dtype(precision))
    adapter = files.load(work / "train-small" / "adapter.safetensors", components.modules)
    x, t, ids = inputs()
    said = {}
    with torch.no_grad():
        for name, strength in (("base", 0.0), ("ours", 1.0)):
            with apply.applied(components.modules, [(adapter, strength)], "stacked"):
                hint = conditioning.encode_text(components, [PROMPT])
                output = conditioning.predict(components.unet, x.to(components.dtype), t, hint, ids)
                said |= {f"{name}.unet": output.contiguous(), f"{name}.context": hint.context.contiguous()}
    save_file(said, work / f"ours.{precision}.safetensors")
    tell()


def theirs(base: Path, work: Path, precision: str) -> None:
    """The same from stock diffusers and PEFT; SystemExit if it is not the same."""
    import diffusers
    import torch
    from safetensors.torch import load_file

    from sdlora import hardware

    said, dtype = load_file(work / f"ours.{precision}.safetensors"), hardware.dtype(precision)
    xl = (base / "text_encoder_2").exists()
    pipe = getattr(diffusers, "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline").from_pretrained(base, torch_dtype=dtype)
    pipe.load_lora_weights(work / "train-small", weight_name="adapter.safetensors")
    x, t, ids = inputs()
    with torch.no_grad():
        if xl:
            context, _, pooled, _ = pipe.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
            added = {"text_embeds": pooled, "time_ids": ids}
        else:
            (context, _), added = pipe.encode_prompt(PROMPT, "cpu", 1, False), None
        output = pipe.unet(x.to(dtype), t, context, added_cond_kwargs=added).sample
    tell()
    exact = load_file(full) if precision != "fp32" and (full := work / "ours.fp32.safetensors").exists() else {}
    bound = CLOSE[str(dtype).removeprefix("torch.")]
    for part, other in (("unet", output), ("context", context)):
        scale = other.float().abs().max()
        apart, moved = ((said[f"{who}.{part}"].float() - other.float()).abs().max() / scale for who in ("ours", "base"))
        print(f"    {part}: {apart:.1e} of the largest value apart (bound {bound:.0e}); the adapter changes {moved:.1e}")
        if exact:
            both = {"sdlora": said[f"ours.{part}"], "stock": other}
            rounding = {who: (it.float() - exact[f"ours.{part}"]).abs().max() / scale for who, it in both.items()}
            print(f"    {part}: from fp32, " + ", ".join(f"{who} is {off:.1e} away" for who, off in rounding.items()))
        if not apart <= bound or not moved > bound:
            raise SystemExit(f"{part}: not the same as stock diffusers + PEFT, or the adapter changes too little to tell")


def timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        result = call(*args, **settings)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
        return result

    return run


def tell(**seconds: float) -> None:
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 2**20  # KiB
    spent = {**seconds, "process": time.perf_counter() - BEGUN, "of them on the CPU": time.process_time()}
    print("    " + ", ".join([*(f"{name} {value:.1f} s" for name, value in spent.items()), f"peak {peak:.2f} GiB"]), flush=True)


def check(base: Path, work: Path, step: str, small: int, precision: str) -> None:
    native = json.loads((base / "unet" / "config.json").read_text())["sample_size"] * 8
    xl = (base / "text_encoder_2").exists()
    work.mkdir(parents=True, exist_ok=True)
    {
        "single": lambda: convert(base, work / "single.safetensors"),
        "back": lambda: convert(work / "single.safetensors", work / "back", None if clips(base) else base),
        "tensors": lambda: tensors(base, work),
        "say": lambda: say(base, work, "said", precision),
        "say-single": lambda: say_single(base, work, precision),
        "train-small": lambda: train(base, work, small, "train-small", 2, True, xl, precision),
        "train-native": lambda: train(base, work, native, "train-native", 1, False, True, precision),
        "generate": lambda: generate(base, work, small, precision),
        "generate-native": lambda: generate(base, work, None, precision),
        "ours": lambda: ours(base, work, precision),
        "theirs": lambda: theirs(base, work, precision),
    }[step]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("kind", choices=("sd1", "sd2", "sdxl"))
    making.add_argument("folder", type=Path)
    checking = commands.add_parser("check")
    checking.add_argument("folder", type=Path)
    checking.add_argument("--work", type=Path, required=True)
    checking.add_argument("--step", choices=STEPS, action="append")
    checking.add_argument("--small", type=int, default=256, help="pixels along a side")
    checking.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    checking.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the step's own process
    given = parser.parse_args()
    if given.command == "make":
        make(given.kind, given.folder)
        return tell()
    if given.here:
        return check(given.folder, given.work, given.step[0], given.small, given.precision)
    own = ["--work", str(given.work), "--small", str(given.small), "--precision", given.precision, "--here"]
    for step in given.step or STEPS:
        print(step, flush=True)
        subprocess.run([sys.executable, __file__, "check", str(given.folder), *own, "--step", step], check=True)


if __name__ == "__main__":
    main()
