"""The architecture is a table: every module of sdlora stands on a floor, and imports point down."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sdlora"
FLOORS = (  # by the first name below sdlora; a new module has to be given its place here
    {"errors", "atomic", "texts", "config", "families", "imports", "together"},
    {
        "layers",
        "schedule",
        "captions",
        "images",
        "infotext",
        "sheet",
        "origin",
        "strength",
        "blocks",
        "prompts",
        "recognise",
        "stored",
        "lean",
    },
    {"adapter", "loss"},
    {"kinds", "matching"},
    {"formats", "checkpoints"},
    {"models", "hardware", "conditioning", "latents", "files", "apply"},
    {"data"},
    {"training", "generation"},
    {"benchmark", "demo", "drawing"},
    {"commands", "cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NEIGHBOURS = {frozenset({"training", "generation"})}  # on one floor, and yet neither knows the other
HEAVY = {"torch", "numpy", "scipy", "PIL", "matplotlib", "diffusers", "transformers", "accelerate", "safetensors", "pydantic"}
VALIDATES = {  # the modules that may know pydantic
    "config",
    "data.settings",
    "training.config",
    "training.tables",
    "drawing.reading",
    "benchmark.config",
    "benchmark.training.config",
}
ORACLES = {  # never needed at run time
    "peft",
    "lycoris",
    "k_diffusion",
    "torchsde",
    "piexif",
    "sd_parsers",
    "sd_prompt_reader",
    "pytest",
    "emoji",
    "shared",
}

Import = tuple[str, bool]  # what is imported, dotted; whether at the module's own level


def modules() -> dict[str, Path]:
    """Name below sdlora ("" is sdlora itself) -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def statements(node: ast.AST, top: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from statements(child, False)  # read by the type checker only
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, top
        yield from statements(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def imports(source: str, name: str, package: bool) -> Iterator[Import]:
    """All imports of a module; `from sdlora.a import b` counts as sdlora.a.b, which is right for modules and harmless for names."""
    here = ["sdlora", *name.split(".")] if name else ["sdlora"]
    for node, top in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + package] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", top) for alias in node.names)


def imports_of(name: str) -> list[Import]:
    path = modules()[name]
    return list(imports(path.read_text(encoding="utf-8"), name, path.name == "__init__.py"))


def outside(name: str) -> set[str]:
    """The libraries that a module imports anywhere."""
    return {target.split(".")[0] for target, _ in imports_of(name)}


def edges() -> list[tuple[str, str, str]]:
    """(module, the room it stands in, a room of sdlora that it imports)."""
    split = [(name, target.split(".")) for name in modules() if name for target, _ in imports_of(name)]
    return [(name, name.split(".")[0], p[1]) for name, p in split if p[0] == "sdlora" and len(p) > 1 and not p[1].startswith("__")]


def test_every_module_has_a_floor():
    rooms = {name.split(".")[0] for name in modules()} - {""}
    assert rooms <= FLOOR.keys(), f"give these a place in FLOORS: {sorted(rooms - FLOOR.keys())}"


def test_imports_point_down_or_stay_on_the_floor():
    wrong = [f"{name} imports {target}" for name, room, target in edges() if FLOOR.get(target, 99) > FLOOR[room]]
    assert not wrong, "\n".join(wrong)


def test_training_and_generation_do_not_know_each_other():
    wrong = [f"{name} imports {target}" for name, room, target in edges() if frozenset({room, target}) in NEIGHBOURS]
    assert not wrong, "\n".join(wrong)


def test_rooms_do_not_import_in_a_circle():
    graph: dict[str, set[str]] = {}
    for _, room, target in edges():
        graph.setdefault(room, set()).update({target} - {room})
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_commands_and_what_the_way_to_help_needs_load_nothing_heavy():
    names = [
        name for name in modules() if name in ("", "cli", "errors", "atomic", "drawing", "drawing.settings") or name.startswith("commands")
    ]
    found = {name: {target.split(".")[0] for target, top in imports_of(name) if top} & HEAVY for name in names}
    assert not {name: heavy for name, heavy in found.items() if heavy}


def test_pydantic_is_known_only_where_input_is_validated():
    assert {name for name in modules() if "pydantic" in outside(name)} <= VALIDATES


def test_oracles_of_the_tests_are_not_dependencies():
    found = {name: outside(name) & ORACLES for name in modules()}
    assert not {name: oracles for name, oracles in found.items() if oracles}


def test_the_reader_of_imports_sees_every_form():
    source = "import torch.nn\nfrom .b import c\nfrom . import d\ndef f():\n    from sdlora.x import y\n"
    assert list(imports(source, "a.m", package=False)) == [
        ("torch.nn", True),
        ("sdlora.a.b.c", True),
        ("sdlora.a.d", True),
        ("sdlora.x.y", False),
    ]
    assert list(imports("from .b import c", "a", package=True)) == [("sdlora.a.b.c", True)]
