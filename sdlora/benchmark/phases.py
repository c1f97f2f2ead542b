"""Where the time of a drawing goes: text encoding, every call of the U-Net, the VAE's decoder; by hooks on these networks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn

from sdlora import hardware
from sdlora.benchmark.conditions import Active

Span = tuple[Any, Any]


class Phases:
    """Marks at the begin and the end of every call. On CUDA they are events in the stream, so that nothing has to wait for them."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cuda = device.type == "cuda"
        self.spans: dict[str, list[Span]] = {"text": [], "unet": [], "vae": []}

    def mark(self) -> Any:
        if not self.cuda:
            return perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, phase: str) -> tuple[float, ...]:
        """Of each call. On CUDA only after the device was synchronised."""
        if self.cuda:
            return tuple(start.elapsed_time(end) / 1e3 for start, end in self.spans[phase])
        return tuple((end - start) / 1e9 for start, end in self.spans[phase])

    def watch(self, phase: str, module: nn.Module) -> Callable[[], None]:
        """Hooks on `module`; what takes them off."""
        begun: list[Any] = []

        def begin(*_: Any) -> None:
            begun.append(self.mark())

        def end(*_: Any) -> None:
            self.spans[phase].append((begun.pop(), self.mark()))

        if hardware.is_compiled(module):  # whose graph does not see hooks that come later
            return self._around(module, begin, end)
        before, after = module.register_forward_pre_hook(begin), module.register_forward_hook(end)

        def off() -> None:
            before.remove()
            after.remove()

        return off

    @staticmethod
    def _around(module: nn.Module, begin: Callable[[], None], end: Callable[[], None]) -> Callable[[], None]:
        call: Any = module._compiled_call_impl

        def timed(*inputs: Any, **named: Any) -> Any:
            begin()
            result = call(*inputs, **named)
            end()
            return result

        def off() -> None:
            module._compiled_call_impl = call

        module._compiled_call_impl = timed
        return off


@contextmanager
def watched(active: Active, device: torch.device) -> Iterator[Phases]:
    """Inside, every call of the networks of `active` is timed."""
    phases = Phases(device)
    with ExitStack() as hooks:
        for module in active.text_encoders:
            hooks.callback(phases.watch("text", module))
        hooks.callback(phases.watch("unet", active.unet))
        hooks.callback(phases.watch("vae", active.decoder))
        yield phases
