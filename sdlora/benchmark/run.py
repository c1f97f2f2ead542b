"""The course of a benchmark: gate, handling, paired blocks, report. What has been measured survives an interruption."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sdlora import hardware
from sdlora.adapter import Adapter, tensors
from sdlora.atomic import writable_folder
from sdlora.benchmark import (
    adapters,
    bases,
    commands,
    environment,
    files,
    gate,
    handling,
    html,
    measure,
    memory,
    plan,
    plot,
    report,
    result,
    second,
    setting,
    stock,
    work,
)
from sdlora.benchmark.clock import Stopwatch
from sdlora.benchmark.conditions import CONDITIONS, DEFAULT, Subject, active, installed
from sdlora.benchmark.config import BenchmarkConfig
from sdlora.benchmark.files import Progress
from sdlora.benchmark.handling import Handling
from sdlora.benchmark.names import BASE, COMPILING
from sdlora.benchmark.result import Analysis, Facts, Pictured, Result
from sdlora.benchmark.stock import Stock
from sdlora.errors import SdloraError, nearest
from sdlora.generation import Request
from sdlora.images import save_png
from sdlora.models import Components

Outcome = files.Outcome[Result, Analysis]


def run(config: BenchmarkConfig, components: Components | None = None, progress: Progress | None = None) -> Outcome:
    """Measures and writes benchmark.json, .md, .html and .png to `config.output`, and pictures to its folder images/.

    SdloraError if the correctness gate fails: then nothing is measured. Ctrl-C ends the measuring, not the report.
    """
    say = progress or (lambda done, total, words: None)
    names = chosen(config)
    first = measure.requests(config, config.prompts[0], config.seeds[0])[0]  # a wrong setting is said before anything is loaded
    if any(CONDITIONS[name].stock for name in names):
        stock.check(first)
    folder = writable_folder(config.output)
    with setting.threads(config.threads):
        say(0, config.planned, "loading")
        components = components or bases.load(config.base, config.device, config.precision, config.vae)
        subject = obtain(config, components, names)
        with setting.settled_heap():
            say(0, config.planned, "checking")
            prints = gate.fingerprint(components)
            found = prepare(config, subject, names)
            say(0, config.planned, "measuring")
            subject = replace(subject, second=subject.second or second.made(components)) if config.pairing == "steps" else subject
            found = blocks(found, subject, names, folder, say)
            last = untouched(components, prints), *(untouched(s, prints, " of the second set") for s in (subject.second,) if s)
        whole = report.blocks(found) == config.planned
        found = replace(found, gate=(*found.gate, *gate.passed(last)), complete=whole, after=environment.record(components.device))
    return written(found, folder)


def analyse(path: Path) -> Outcome:
    """The report of a finished or interrupted benchmark anew, from the samples in its JSON, beside that file."""
    return written(result.read(path), path.parent, path.name)


def chosen(config: BenchmarkConfig) -> list[str]:
    """The conditions to measure, the base first."""
    for name in config.conditions:
        if name not in CONDITIONS:
            raise SdloraError(f"conditions: unknown condition {name!r}{nearest(name, CONDITIONS)}")
    names, missing = installed(tuple(dict.fromkeys((BASE, *(config.conditions or DEFAULT)))))
    if missing and config.conditions:
        raise SdloraError(f"conditions: {', '.join(missing)} need the package peft; install it (pip install peft), or leave them out")
    return names


def obtain(config: BenchmarkConfig, components: Components, names: list[str]) -> Subject:
    """The model, every prompt's adapters and, if a condition asks for it, the reference."""
    most = max(CONDITIONS[name].count for name in names)
    own = dict(zip(config.prompts, config.adapters or (config.adapter,) * len(config.prompts), strict=True))
    loaded = {text: adapters.companions(adapters.obtain(text, components), components, most) for text in dict.fromkeys(own.values())}
    references = [CONDITIONS[name] for name in names if CONDITIONS[name].stock]
    reference = Stock(components, any(one.how == "fused" for one in references)) if references else None
    other = compiled(components) if any(CONDITIONS[name].compiled for name in names) else None
    return Subject(components, {prompt: loaded[text] for prompt, text in own.items()}, config.strength, config.batch, reference, other)


def compiled(components: Components) -> Components:
    """A second set whose U-Net goes through torch.compile; nothing is compiled before its first call."""
    second.check_compiler(components.device)
    found = second.made(components, "or leave out the conditions that are compiled")
    hardware.compile_calls(found.unet)
    return found


def prepare(config: BenchmarkConfig, subject: Subject, names: list[str]) -> Result:
    """Everything but the samples: the gate, then peak memory and first pictures, and the times of handling an adapter."""
    prompt, components = config.prompts[0], subject.components
    wanted = measure.requests(config, prompt, config.seeds[0])[: config.batch]
    few = [fewer(request, config) for request in wanted]
    compiling = compilation(subject, names, prompt, few)
    checks: tuple[gate.Check, ...] = ()
    for text, prompts_adapters in distinct(subject).items():
        one = [fewer(measure.requests(config, text, config.seeds[0])[0], config)]
        with active(subject, BASE, text) as base:
            checks += gate.check(components, [(prompts_adapters[0], config.strength)], lambda: base.draw(one)[0], config.bound)  # noqa: B023
    checks += gate.conditions(subject, names, prompt, few[:2], (config.bound, config.bound_reference))
    plain = [name for name in names if not (CONDITIONS[name].stock or CONDITIONS[name].compiled)]
    counts = work.measure(subject, plain, prompt, wanted)
    peaks = memory.measure(subject, names, prompt, lambda draw: draw(wanted), config.rounds)
    handled = (*compiling, *handling.measure(subject, prompt, config.repeats), *commands.measure(config))
    facts = describe(config, subject.adapters[prompt][0])
    surroundings = environment.record(components.device) | {"attention": environment.attention(components.unet)}
    return Result(config, surroundings, facts, checks, handled, peaks, (), complete=False, work=counts)


def fewer(request: Request, config: BenchmarkConfig) -> Request:
    """What is compared before the clock starts."""
    return replace(request, steps=min(config.checked or config.steps, config.steps))


def compilation(subject: Subject, names: Sequence[str], prompt: str, wanted: Sequence[Request]) -> tuple[Handling, ...]:
    """The first drawing of a compiled U-Net, if any is asked for, in which it is compiled."""
    first = next((name for name in names if CONDITIONS[name].compiled), None)
    if first is None:
        return ()
    time = Stopwatch(subject.components.device)
    with active(subject, first, prompt) as condition:
        time(COMPILING, lambda: condition.draw(wanted))
    return (Handling(COMPILING, (time.seconds[COMPILING],)),)


def distinct(subject: Subject) -> dict[str, tuple[Adapter, ...]]:
    """The first prompt of each adapter, and its adapters."""
    firsts: dict[int, str] = {}
    for prompt, several in subject.adapters.items():
        firsts.setdefault(id(several[0]), prompt)
    return {prompt: subject.adapters[prompt] for prompt in firsts.values()}


def describe(config: BenchmarkConfig, adapter: Adapter) -> Facts:
    size = sum(t.numel() * t.element_size() for update in adapter.layers.values() for t in tensors(update).values())
    text = config.adapters[0] if config.adapters else config.adapter
    source = adapters.parse(text)
    name = (adapter.metadata.get("modelspec.title") or source.name) if isinstance(source, Path) else text
    return Facts(name, len(adapter.layers), adapter.parameters, size)


def blocks(found: Result, subject: Subject, names: list[str], folder: Path, say: Progress) -> Result:
    """`found` with the samples; saved after every block, so that even a killed run keeps what it measured."""
    config = found.config
    planned = plan.blocks(config.blocks, config.prompts, config.seeds, names, config.seed, config.runs)
    pack = config.pairing == "steps" and second.packs(subject.components)
    if config.pairing == "steps" and subject.components.device.type == "cpu":
        found = replace(
            found, environment=found.environment | {"packed_convolutions": "by both" if pack else "by neither: too little memory"}
        )
    try:
        for block in planned:
            taken = one_block(subject, block, config, pack)
            found = replace(found, samples=(*found.samples, *(sample for sample, _ in taken)))
            if block.prompt not in {one.prompt for one in found.pictures}:
                first = {sample.condition: (sample, images) for sample, images in reversed(taken)}
                kept = [Pictured(block.prompt, block.seed, name, keep(first[name][1][0], folder, first[name][0])) for name in names]
                found = replace(found, pictures=(*found.pictures, *kept))
            result.write(found, folder / files.NAME, analysed=False)
            say(block.index + 1, config.planned, "measuring")
    except KeyboardInterrupt:
        say(report.blocks(found), config.planned, "interrupted")
    return found


def one_block(subject: Subject, block: plan.Block, config: BenchmarkConfig, pack: bool) -> list[measure.Taken]:
    """Every condition once; where steps take turns, each beside a drawing of the base."""
    places = range(len(block.order))
    if config.pairing == "pictures":
        return [measure.timed(subject, block, place, config) for place in places]
    number = {name: i for i, name in enumerate(CONDITIONS)}
    rivals = [(place, plan.roles(block.index, number[name], config.seed)) for place, name in enumerate(block.order) if name != BASE]
    return [taken for place, roles in rivals for taken in measure.timed_in_turns(subject, block, place, config, roles, pack)]


def keep(image: Image.Image, folder: Path, sample: measure.Sample) -> str:
    """The picture of a sample beside the report; its path as seen from there."""
    name = f"images/{sample.block:03d}-{sample.condition.replace(' ', '-')}.png"
    writable_folder(folder / "images")
    save_png(image, folder / name, {"prompt": sample.prompt, "seed": sample.seed, "condition": sample.condition})
    return name


def untouched(components: Components, before: str, where: str = "") -> gate.Check:
    law = f"after all samples every tensor{where} is the base's, bit for bit"
    return gate.Check(law, before[:12], gate.fingerprint(components) == before)


def written(found: Result, folder: Path, name: str = files.NAME) -> Outcome:
    """The report of `found`: JSON, Markdown, HTML and, if there is anything to plot, a PNG."""
    analysis, path = result.analyse(found), folder / name
    result.write(found, path)
    return files.reported(
        found, analysis, path, plot.save, lambda picture: (report.markdown(found), html.page(found, analysis, folder, picture))
    )
