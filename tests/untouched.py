"""What no test may leave behind: a shared base that is not what it was, or other settings of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from operator import attrgetter

import torch

MARKS = (attrgetter("_version"), attrgetter("requires_grad"), attrgetter("grad"))
SETTINGS = {
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "number of threads": torch.get_num_threads,
    "gradients": torch.is_grad_enabled,
    "inference mode": torch.is_inference_mode_enabled,
    "autocast": torch.is_autocast_enabled,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "precision of matrix products": torch.get_float32_matmul_precision,
    "oneDNN": lambda: torch.backends.mkldnn.enabled,
    "precision in oneDNN": lambda: [
        getattr(getattr(torch.backends.mkldnn, part, None), "fp32_precision", "") for part in ("matmul", "conv")
    ],
    "denormal numbers": lambda: bool(torch.full((8,), 1e-40, dtype=torch.float32).mul(0.5).any()),
    "flash attention": torch.backends.cuda.flash_sdp_enabled,
    "plain attention": torch.backends.cuda.math_sdp_enabled,
    "function modes": torch._C._len_torch_function_stack,
    "dispatch modes": torch._C._len_torch_dispatch_stack,
    "working folder": os.getcwd,
}


def settings() -> list:
    return [read() for read in SETTINGS.values()]


def changed_settings(before: list) -> list[str]:
    return [f"{name} was {old} and is {new}" for name, old, new in zip(SETTINGS, before, settings(), strict=True) if old != new]


class Shared:
    """The bases that many tests share, by name; those are looked at that a file of tests uses."""

    def __init__(self) -> None:
        self.watches: dict[str, Watch] = {}
        self.used: set[str] = set()

    def add(self, name: str, components):
        self.watches[name] = Watch(components)
        return components

    def traces(self, every_number: bool = False) -> list[str]:
        return [
            f"base {name}, {trace}" for name in sorted(self.used & self.watches.keys()) for trace in self.watches[name].traces(every_number)
        ]


class Watch:
    """A base as it is now.

    `traces` compares identities, addresses and version counters, in a millisecond; numbers where these differ alone, since a fused
    adapter is written into a weight and taken out of it again.
    """

    @torch.no_grad()
    def __init__(self, components):
        networks = {"unet": components.unet, "vae": components.vae}
        networks |= {f"text encoder {i}": encoder for i, encoder in enumerate(components.text_encoders, 1)}
        for encoder in components.text_encoders:  # transformers puts hooks of its own onto a text encoder when it is first asked for these
            encoder(torch.zeros((1, 1), dtype=torch.long), output_hidden_states=True)
        modules = {id(m): (f"{top} {path}".strip(), m) for top, network in networks.items() for path, m in network.named_modules()}
        tensors = {id(t): (f"{n}.{k}", t) for n, m in modules.values() for k, t in (m._parameters | m._buffers).items() if t is not None}
        self.tensors: dict[str, torch.Tensor] = dict(tensors.values())
        self.tables: dict[str, dict] = {}  # attributes, layers, parameters, hooks, configurations
        self.kinds = {name: type(module) for name, module in modules.values()}  # an attribute may be set to what its class has
        for name, module in modules.values():
            self.tables[name] = vars(module)
            self.tables |= {f"{name}.{key}": value for key, value in vars(module).items() if isinstance(value, dict)}
        for name, config in ((name, network.config) for name, network in networks.items()):
            self.tables[f"configuration of {name}"] = config if isinstance(config, dict) else vars(config)
        self.remember()

    def remember(self) -> None:
        self.copies = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.learns = {name: tensor.requires_grad for name, tensor in self.tensors.items()}
        self.contents = {name: dict(table) for name, table in self.tables.items()}
        self.empty, self.full = ([t for t in self.tables.values() if bool(t) == full] for full in (False, True))
        self.seen = self._seen()

    def _seen(self) -> tuple:
        values = list(chain.from_iterable(table.values() for table in self.full))
        tensors = self.tensors.values()
        return any(self.empty), values, [t.data_ptr() for t in tensors], *(list(map(mark, tensors)) for mark in MARKS)

    def traces(self, every_number: bool = False) -> list[str]:
        """What is not as it was, by name; the next call is told of what comes after this one.

        What was written through `Tensor.data` counts no version: `every_number` finds it, in ten times the time.
        """
        now = self._seen()
        tables = _equal(now[:2], self.seen[:2])
        if not every_number and tables and _equal(now[2:], self.seen[2:]):
            return []
        found = [*(() if tables else self._in_tables()), *self._in_tensors()]
        self.seen = now
        if found:
            self.remember()
        return found

    def _in_tables(self) -> Iterator[str]:
        for name, table in self.tables.items():
            before = self.contents[name]
            for key in before.keys() | table.keys():
                default = getattr(self.kinds.get(name), str(key), None)
                old, new = before.get(key, default), table.get(key, default)
                if old is not new and (isinstance(new, torch.Tensor) or old != new):
                    yield f"{name}: {key} was {_short(old)} and is {_short(new)}"

    def _in_tensors(self) -> Iterator[str]:
        for name, tensor in self.tensors.items():
            copy = self.copies[name]
            same = (tensor.dtype, tensor.device, tensor.shape) == (copy.dtype, copy.device, copy.shape)
            if not same or not torch.equal(tensor, copy):
                yield f"{name} has other numbers, or others of a kind"
            if tensor.requires_grad != self.learns[name] or tensor.grad is not None:
                yield f"{name} takes a gradient now, or none any more"


def _equal(one: tuple, other: tuple) -> bool:
    try:
        return one == other
    except RuntimeError:  # a tensor in the place of another has no plain ==
        return False


def _short(value: object) -> str:
    return type(value).__name__ if isinstance(value, torch.Tensor | torch.nn.Module) else repr(value)[:80]
