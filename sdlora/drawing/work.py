"""Settings carried out: gather them, load the model, draw, save."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from sdlora import atomic, files, generation, hardware, images
from sdlora.drawing import origins, places, preview, prompt_files, reading, recall, runs
from sdlora.drawing.batches import batches
from sdlora.drawing.crew import Crew
from sdlora.drawing.recall import Recalled
from sdlora.drawing.settings import Drawing
from sdlora.drawing.translate import requests
from sdlora.errors import SdloraError
from sdlora.generation import Picture, Request, State, record
from sdlora.models import Components
from sdlora.prompts import extract, library

Say = Callable[[str], None]
Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]  # steps in all -> what is told of each step's pictures


def quiet(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """A bar that is not there."""
    return nullcontext(lambda n: None)


@dataclass(frozen=True, eq=False)
class Result:
    paths: list[Path]  # of the pictures drawn now
    seconds: float  # that they took, without loading
    pictures: list[Picture]  # they themselves, if they were kept
    known: int = 0  # pictures of a run that were there already
    named: list[Path] = field(default_factory=list)  # of a run: the file of every picture that was wanted


def gathered(given: Mapping[str, Any], settings: Path | None = None, source: Path | None = None) -> tuple[Drawing, Recalled | None]:
    """What a picture says, then a settings file, then `given`; the later ones win."""
    said = reading.layered(reading.from_toml(settings) if settings else {}, given)
    if reading.is_off("prompts", said.get("prompts")):
        del said["prompts"]  # a picture's own prompt is drawn again
    if source is None:
        return reading.merged(said), None
    found = recall.recalled(source, said.get("adapters", ()), said)
    own = {name: value for name, value in found.settings.items() if name != "prompt" or "prompts" not in said}
    return reading.merged(own, said), found


def carry_out(drawing: Drawing, say: Say = lambda text: None, bar: Bar = quiet) -> list[Path]:
    """Draw and save all that a Drawing says; the new pictures' paths. With `prompts`, what is there already is left alone."""
    return drawn_and_saved(drawing, say, bar, keep=False).paths


def drawn_and_saved(drawing: Drawing, say: Say, bar: Bar, recalled: Recalled | None = None, keep: bool = True) -> Result:
    """`carry_out` in full: `say` gets warnings and what was loaded; `keep` keeps the pictures for a sheet."""
    crew = Crew.mustered(drawing.device)
    tell: Say = say if crew.first else (lambda text: None)
    wanted = prompt_files.requests(drawing) if drawing.prompts else requests(drawing)
    if drawing.prompts or crew.several:
        return resumed(drawing, wanted, say, bar, crew, recalled)
    images.check_quality(images.format_of(drawing.image_format), drawing.quality)
    wanted = _tagged(wanted, drawing, tell)
    folder = atomic.writable_folder(drawing.output)
    components = load(drawing, tell)
    _warn(drawing, components, recalled, tell)
    return _numbered(components, drawing, wanted, folder, bar, tell, keep)


def resumed(
    drawing: Drawing, wanted: Sequence[Request], say: Say, bar: Bar, crew: Crew | None = None, recalled: Recalled | None = None
) -> Result:
    """Draw those of the wanted pictures that the output folder has not yet; several processes share them."""
    crew = crew or Crew.mustered(drawing.device)
    tell: Say = say if crew.first else (lambda text: None)
    kind = images.format_of(drawing.image_format)
    images.check_quality(kind, drawing.quality)
    wanted = _tagged(wanted, drawing, tell)
    folder = atomic.writable_folder(drawing.output)
    if drawing.apply == generation.AUTO:  # a choice by what is left to draw would be another one after an interruption
        drawing = replace(drawing, apply="stacked")
    components = load(drawing, tell, crew)
    _warn(drawing, components, recalled, tell)
    start = perf_counter()
    plan = runs.plan(folder, [runs.key(record.settings(components, r, drawing.apply)) for r in wanted], wanted, images.FORMATS[kind])
    crew.wait()  # until everybody has seen the same folder
    if crew.first:
        runs.write(folder, plan)
    together = [batch for batch in batches(components, wanted, drawing.apply, drawing.batch) if plan.missing.intersection(batch)]
    named = [folder / name for name in plan.names]
    saving = _Saving(components, drawing, {id(wanted[i]): named[i] for i in plan.missing})
    saving.run([[wanted[i] for i in batch] for batch in crew.share(together)], bar if crew.first else quiet, crew.wait)
    crew.wait()
    return Result([named[i] for i in sorted(plan.missing)], perf_counter() - start, [], plan.known, named)


def load(drawing: Drawing, say: Say, crew: Crew | None = None) -> Components:
    """The base of a Drawing. Bases that were named by their path are found again by their hash."""
    found: dict[str, Any] = {name: getattr(drawing, name) for name in ("vae", "family", "prediction", "variant")}
    if drawing.base != "emoji":
        found["say"] = say
    ways = {name: getattr(drawing, name) for name in ("attention", "tiling", "compile", "offload")}
    components = generation.load(drawing.base, crew.device if crew else drawing.device, drawing.precision, **ways, **found)
    if Path(drawing.base).expanduser().exists():
        places.remember({components.own_hash: drawing.base})
    if drawing.vae and components.vae_file:
        places.remember({components.vae_file[1]: drawing.vae})
    return components


def draw(
    components: Components,
    drawing: Drawing,
    wanted: Sequence[Request],
    callback: Callable[[State], None] | None = None,
    say: Say | None = None,
) -> Iterator[Picture]:
    """The pictures in the order of `wanted`, with the adapters that each request names; all checked before the first is drawn.

    `drawing` says how; its prompts and seeds are not looked at.
    """
    return generation.generate(components, wanted, callback=callback, say=say, batch=drawing.batch, **_ways(components, drawing, wanted))


def _ways(components: Components, drawing: Drawing, wanted: Sequence[Request]) -> dict[str, Any]:
    """Further arguments of `generate`; the adapters of all `wanted`, loaded."""
    budget = None if drawing.adapter_memory is None else files.parse_bytes(drawing.adapter_memory, "--adapter-memory")
    found = {name: Path(path) for request in wanted for name, path in request.tagged}
    found |= {path: Path(path) for request in wanted for path, _ in request.adapters}
    named = generation.load_named(components, found, files.Library(budget))
    origins.remember(wanted)
    places.remember({record.hashes(path)["hash"]: str(path) for path in found.values()})
    offload = hardware.device(drawing.device) if drawing.offload else None
    return {"named": named, "offload": offload, "apply": drawing.apply, "pack": drawing.pack}


def _tagged(wanted: Sequence[Request], drawing: Drawing, say: Say) -> list[Request]:
    """The requests with the files of their prompts' tags."""
    for prompt in dict.fromkeys(request.prompt for request in wanted):
        for tag in extract(prompt).ignored:
            say(f"warning: {tag} is left out of the prompt; sdlora knows <lora:NAME:STRENGTH>")
    known, listed = dict(drawing.named), library.listed(drawing.adapters)
    for name in dict.fromkeys(tag.name for request in wanted for tag in request.tags):
        if name not in known:
            known[name] = library.find(name, listed, drawing.adapters)
    return [replace(r, tagged=tuple((tag.name, str(known[tag.name])) for tag in r.tags)) for r in wanted]


def _warn(drawing: Drawing, components: Components, recalled: Recalled | None, say: Say) -> None:
    for warning in (*recalled.warnings, *recall.check(recalled, components, _said(drawing, recalled))) if recalled else ():
        say(f"warning: {warning}")


def _said(drawing: Drawing, recalled: Recalled) -> dict[str, Any]:
    """What is other than the picture had it."""
    return {name: True for name in ("base", "vae") if getattr(drawing, name) != recalled.settings.get(name)}


def _numbered(components: Components, drawing: Drawing, wanted: Sequence[Request], folder: Path, bar: Bar, say: Say, keep: bool) -> Result:
    """Behind the highest number in the folder, one after the other."""
    kind = images.format_of(drawing.image_format)
    follow = _Follower.of(components, drawing)
    drawn = draw(components, drawing, wanted, follow, say)  # what is wrong is said before there is a bar
    start, paths, pictures = perf_counter(), list[Path](), list[Picture]()
    with bar(sum(generation.steps(components, request) for request in wanted)) as follow.advance:
        for picture in drawn:
            settings = record.settings(components, picture.request, picture.apply)
            paths.append(record.save(picture, folder, settings, kind, drawing.quality))
            if keep:
                pictures.append(picture)
    return Result(paths, perf_counter() - start, pictures)


@dataclass(frozen=True, eq=False)
class _Saving:
    """Pictures of a run on their way to the files that they are to have."""

    components: Components
    drawing: Drawing
    paths: Mapping[int, Path]  # by the identity of the request; of those in a batch that are missing

    def run(self, together: Sequence[list[Request]], bar: Bar, wait: Callable[[], None]) -> None:
        """Draw the batches. A picture that turns into NaN is said at the end, when the other processes are done as well, and leaves the
        others in peace; a full disk stops it all."""
        everything = [request for batch in together for request in batch]
        wanted = sum(id(request) in self.paths for request in everything)
        lost: list[SdloraError] = []
        done = 0
        follow = _Follower.of(self.components, self.drawing)
        ways = _ways(self.components, self.drawing, everything)
        streams = [generation.generate(self.components, batch, batch=len(batch), callback=follow, **ways) for batch in together]
        with bar(sum(generation.steps(self.components, request) for request in everything)) as follow.advance:
            try:
                for stream in streams:
                    for picture in _until_lost(stream, lost):
                        done += self._save(picture)
            except SdloraError as error:
                raise SdloraError(f"{error} ({done} of {wanted} pictures are drawn; the same command goes on)") from error
        if lost:
            wait()
            raise SdloraError(f"{lost[0]} ({done} of {wanted} pictures are drawn, {wanted - done} are not)") from lost[0]

    def _save(self, picture: Picture) -> int:
        """How many files it made: none for a neighbour that is there already."""
        path = self.paths.get(id(picture.request))
        if path is None:
            return 0
        images.save(picture.image, path, record.settings(self.components, picture.request, picture.apply), self.drawing.quality)
        return 1


def _until_lost(stream: Iterator[Picture], lost: list[SdloraError]) -> Iterator[Picture]:
    """A batch's pictures; its error goes to `lost`."""
    while True:
        try:
            picture = next(stream)
        except StopIteration:
            return
        except SdloraError as error:
            lost.append(error)
            return
        yield picture


@dataclass
class _Follower:
    """What follows each step: previews, and the bar as soon as there is one."""

    show: Callable[[State], None] | None
    advance: Callable[[int], None] = lambda n: None

    @classmethod
    def of(cls, components: Components, drawing: Drawing) -> "_Follower":
        every = drawing.preview
        return cls(None if every is None else preview.to_file(components, drawing.output / preview.NAME, every))

    def __call__(self, state: State) -> None:
        self.advance(len(state.x))
        if self.show:
            self.show(state)
