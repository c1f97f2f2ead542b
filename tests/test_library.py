"""Laws of the library of loaded adapters: what is read once, what is dropped, and what stays because it is in use."""

import os
import threading
from pathlib import Path

import pytest
import torch

from sdlora import Library, files
from sdlora.errors import SdloraError
from sdlora.files import parse_bytes


@pytest.fixture
def paths(components, random_adapter, tmp_path: Path) -> list[Path]:
    """Five adapters of one size."""
    return [files.save(random_adapter(components.modules, seed=seed), tmp_path / f"{seed}.safetensors") for seed in range(5)]


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files that are read, in their order."""
    seen: list[str] = []
    real = files.library.load
    monkeypatch.setattr(files.library, "load", lambda path, modules: (seen.append(path.stem), real(path, modules))[1])
    return seen


def weight(path: Path) -> int:
    adapter = files.read(path)
    return 4 * adapter.parameters


def test_a_file_is_read_once_and_its_bytes_are_those_of_its_tensors(components, paths, reads):
    library = Library()
    first = library.load(paths[0], components.modules)
    assert library.load(str(paths[0]), components.modules) is first and reads == ["0"]
    assert library.bytes == weight(paths[0]) > 0 and len(library) == 1


def test_the_least_recently_used_goes_first(components, paths, reads):
    library = Library(3 * weight(paths[0]))
    for i in (0, 1, 2, 0, 3):  # 3 takes the place of 1: 0 was used after it
        library.load(paths[i], components.modules)
    assert library.bytes == 3 * weight(paths[0]) == library.budget
    for i in (0, 2, 3):
        library.load(paths[i], components.modules)
    assert reads == ["0", "1", "2", "3"]
    library.load(paths[1], components.modules)
    assert reads[-1] == "1"


def test_what_is_in_use_stays_beyond_the_budget_and_goes_when_nobody_uses_it(components, paths, reads):
    library = Library(weight(paths[0]))
    with library.using(paths[:3], components.modules) as adapters:
        assert len(library) == 3 and library.bytes > library.budget
        library.clear()
        assert [library.load(path, components.modules) for path in paths[:3]] == adapters
    assert len(library) == 1 and library.bytes <= library.budget and reads == ["0", "1", "2"]
    with pytest.raises(ZeroDivisionError), library.using(paths, components.modules):
        raise ZeroDivisionError
    assert len(library) == 1


def test_an_adapter_larger_than_the_budget_is_given_and_not_kept(components, paths):
    library = Library(weight(paths[0]) - 1)
    assert library.load(paths[0], components.modules).layers and library.bytes == 0


def test_a_file_that_has_changed_is_read_again(components, paths, reads, random_adapter):
    library = Library()
    old = library.load(paths[0], components.modules)
    files.save(random_adapter(components.modules, seed=9), paths[0])
    os.utime(paths[0], ns=(1, 1))
    new = library.load(paths[0], components.modules)
    name = next(iter(old.layers))
    assert reads == ["0", "0"] and not torch.equal(old.layers[name].a, new.layers[name].a)


def test_another_model_is_held_against_the_file_anew(components, loaded, paths):
    library = Library()
    library.load(paths[0], components.modules)
    with pytest.raises(SdloraError, match="another shape|do not exist"):
        library.load(paths[0], loaded("sd1").modules)
    assert library.load(paths[0], components.modules).layers


def test_threads_share_a_library_and_read_each_file_once(components, paths, reads):
    library, found = Library(), []
    threads = [threading.Thread(target=lambda: found.append([library.load(p, components.modules) for p in paths])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reads) == list("01234") and all(a is b for own in found for a, b in zip(own, found[0], strict=True))


def test_a_missing_file_is_said_as_ever(components, tmp_path):
    with pytest.raises(SdloraError, match="does not exist"):
        Library().load(tmp_path / "nothing.safetensors", components.modules)


@pytest.mark.parametrize(("text", "size"), [("2GB", 2_000_000_000), ("1.5 GiB", 1_610_612_736), ("500mb", 500_000_000), ("7", 7)])
def test_amounts_of_memory_are_read(text: str, size: int):
    assert parse_bytes(text, "--adapter-memory") == size


@pytest.mark.parametrize("text", ["two", "2TB", "-1GB", "", "1,5GB"])
def test_what_is_no_amount_is_refused(text: str):
    with pytest.raises(SdloraError, match="--adapter-memory .* write 2GB"):
        parse_bytes(text, "--adapter-memory")
