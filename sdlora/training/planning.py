"""What a training would do, found out without weights and without writing anything."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sdlora import models
from sdlora.data import Example, Found, buckets
from sdlora.layers import named_layers
from sdlora.training import heldout, initial, processes, saving, sources, tracking, words
from sdlora.training.config import TrainConfig
from sdlora.training.layout import Layout, agree
from sdlora.training.trainable import layers

BUCKETS, SKIPPED = 8, 3  # that are listed


@dataclass(frozen=True)
class Target:
    name: str
    layers: int
    rank: int
    alpha: float
    parameters: int  # of the adapter, α not counted
    full: int  # of the layers' weights
    mixed: bool = False  # its layers differ in rank or α, of which the largest are given


@dataclass(frozen=True)
class Plan:
    config: TrainConfig  # settled, except for what only the device tells
    images: int  # to train on
    held: int  # to validate with
    targets: tuple[Target, ...]
    done: int  # steps that a run in the output folder has already made
    buckets: tuple[tuple[tuple[int, int], int], ...] = ()  # (height, width) in pixels, how many pictures
    skipped: tuple[str, ...] = ()  # pictures that cannot be read, and why

    @property
    def parameters(self) -> int:
        return sum(target.parameters for target in self.targets)

    @property
    def full(self) -> int:
        return sum(target.full for target in self.targets)


def plan(config: TrainConfig) -> Plan:
    """SdloraError for anything wrong that can be known before the weights are read."""
    config = config.settled()
    found, held = checked(config)
    targets = targets_of(config)
    layout = Layout(config.output)
    agree(layout, config)
    done = saving.step_of(saving.newest(layout))
    return Plan(config, len(found.images), len(held), targets, done, tuple(counted(found, config)), found.skipped)


def checked(config: TrainConfig) -> tuple[Found, list[Example]]:
    """The pictures to train on and those to validate with; SdloraError for these, and for what else is asked for and is not there."""
    tracking.check(config.trackers)
    processes.check(config)
    if config.init is not None:
        initial.digest(config.init)
    return heldout.divided(sources.gathered(config), config)


def counted(found: Found, config: TrainConfig) -> list[tuple[tuple[int, int], int]]:
    """((height, width) in pixels, how many pictures) of every bucket, the fullest first."""
    base = models.opened(config.base, **config.reading)
    how = buckets.frames(config, buckets.grid(base.name, base.configs["unet"], base.configs["vae"]))
    sizes = Counter(row.crops[0].size for row in sources.planned(found.images, config, how, config.batch_size))
    return sizes.most_common()


def targets_of(config: TrainConfig, modules: Mapping[str, nn.Module] | None = None) -> tuple[Target, ...]:
    """What each target comes to in `modules`, by default the base's, without its weights."""
    modules = modules or models.skeleton(config.base)
    weights, chosen = named_layers(modules), layers(modules, config)
    result = []
    for target in config.parts:
        own = {name: layer for name, layer in chosen.items() if layer.target == target}
        shapes = {name: tuple(weight.shape) for name in own if isinstance(weight := weights[name].weight, Tensor)}
        trained = sum(own[name].rank * (_size(shape[1:]) + shape[0]) for name, shape in shapes.items())
        ranks, alphas = ([value(layer) for layer in own.values()] for value in (lambda one: one.rank, lambda one: one.alpha))
        full = sum(map(_size, shapes.values()))
        result.append(Target(target, len(own), max(ranks), max(alphas), trained, full, len({*zip(ranks, alphas, strict=True)}) > 1))
    return tuple(result)


def _size(shape: tuple[int, ...]) -> int:
    result = 1
    for n in shape:
        result *= n
    return result


def lines(plan: Plan) -> list[str]:
    """The plan in words."""
    c = plan.config
    batch = f"{c.batch_size} images" + (f" + {c.priors_per_batch} of the base's own" if c.prior.on else "")
    batch += f", {c.accumulate} batches a step" if c.accumulate > 1 else ""
    epochs = c.steps * c.samples_per_step / plan.images
    rate = ", ".join(("" if name == "unet" else name.replace("_", " ") + " ") + f"{c.rate(name):g}" for name in c.learning)
    alike = len({(target.rank, target.alpha) for target in plan.targets}) == 1 and not any(target.mixed for target in plan.targets)
    size = f"rank {plan.targets[0].rank}, alpha {plan.targets[0].alpha:g}" if alike else "each target of its own rank"
    rows = [
        ("base", c.base),
        ("images", f"{plan.images} in {c.images}" + (f", trigger {', '.join(c.triggers)}" if c.triggers else "")),
        *(("left out", line) for line in _left_out(plan)),
        *((("buckets", _buckets(plan)),) if plan.buckets else ()),
        ("adapter", f"LoRA, {size}, {plan.parameters:,} parameters ({_share(plan.parameters, plan.full)})"),
        *(("", f"{t.name}: {t.layers} layers{_sizes(t, alike)}, {_numbers(t)}") for t in plan.targets),
        ("batch", batch),
        ("steps", f"{c.steps} ({epochs:.1f} times each image)" + (f", {plan.done} of them done" if plan.done else "")),
        ("rate", f"{rate}, {c.optimizer.name}, {c.warmup} steps of warm-up, {words.schedule(c)}"),
        ("loss", words.loss(c)),
        *((("held out", f"{plan.held} images, validated every {c.validation.every or max(1, c.steps // 10)} steps"),) if plan.held else ()),
        ("output", str(c.output) + (f", saved every {_interval(c)}" if c.save_every else "")),
    ]
    if c.prior.on:
        place = next(i for i, (name, _) in enumerate(rows) if name == "batch")
        rows.insert(place, ("prior", f"{c.prior.images} pictures of {len(c.prior.prompts)} prompts, weight {c.prior.weight:g}"))
    return [f"{name:8} {text}" for name, text in rows]


def _left_out(plan: Plan) -> list[str]:
    """The first few pictures, and how many more."""
    shown = [reason.partition("; replace it")[0] for reason in plan.skipped[:SKIPPED]]
    rest = len(plan.skipped) - SKIPPED
    return [*shown, f"and {rest} more"] if rest > 0 else shown


def _buckets(plan: Plan) -> str:
    """Width × height and how many pictures of each, the fullest first."""
    shown = [f"{width} × {height}: {count}" for (height, width), count in plan.buckets[:BUCKETS]]
    rest = len(plan.buckets) - BUCKETS
    return ", ".join(shown) + (f", and {rest} more" if rest > 0 else "")


def _interval(config: TrainConfig) -> str:
    return config.save_every if isinstance(config.save_every, str) else f"{config.save_every} steps"


def _sizes(target: Target, alike: bool) -> str:
    return "" if alike else f", rank {'up to ' * target.mixed}{target.rank}, alpha {'up to ' * target.mixed}{target.alpha:g}"


def _numbers(target: Target) -> str:
    return f"{target.parameters:,} of {target.full:,} ({_share(target.parameters, target.full)})"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} % of the full matrices"
