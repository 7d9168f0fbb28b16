"""`torch.compile` of the backbone: begun where the run is long enough to win the warm-up back, and
given up where it fails.
"""

import importlib
import time
from collections.abc import Callable

import torch
from torch import Tensor

from common.console import duration, say, warn
from common.train.checkpoint import first_line
from common.train.compute import Compute, World, is_out_of_memory
from common.train.model import SwinHierarchical, run_backbone

# Of torch's compiler, where this torch has them. A phase has some kinds of batches (pixels, mixed
# pixels, val), each again after memory ran out; more is a storm, which is told and not run through.
# The backward pass is compiled with the forward pass, so that a failure is met there; and dropout
# draws what it draws uncompiled, so that a resumed run goes on as the one before.
SETTINGS = (
    ("torch._dynamo.config", "recompile_limit", 32),
    ("torch._dynamo.config", "fail_on_recompile_limit_hit", True),
    ("torch._functorch.config", "force_non_lazy_backward_lowering", True),
    ("torch._inductor.config", "fallback_random", True),
)
# what `auto` expects until both are measured: the warm-up in seconds, and the share of a step's
# time that compiling saves (a Swin-Tiny on data-centre GPUs saves more than a third)
WARM_UP, SAVED = 90.0, 0.3


class BackboneCompiler:
    """What `SwinHierarchical.features` calls during training: the backbone, compiled or not.

    Batches of another size than `sizes`, such as the last of a split, are not worth a compilation
    and run without. The model keeps its parameters and their names.

    Attributes:
        sizes: images per call that are compiled for.
        compiled: the compiled backbone, or None.
        warm_up: seconds that compiling has taken in this phase.
    """

    def __init__(self, mode: str, compute: Compute, world: World) -> None:
        """Begin uncompiled; `mode` is auto, on or off."""
        on_nvidia = compute.on_gpu and torch.version.hip is None
        self.mode = self.wanted = "off" if mode == "auto" and not on_nvidia else mode
        self.world = world
        self.begin()

    def begin(self, *sizes: int) -> None:
        """Begin a phase: it trains other parameters, and so needs other code."""
        self.sizes, self.warm_up = set(sizes), 0.0
        self.compiled: Callable[[SwinHierarchical, Tensor], Tensor] | None = None
        self._kinds: set[tuple[object, ...]] = set()
        self._notes, self._before = 0, 0.0
        if self.mode == "on" and sizes:
            self._compile()

    def __deepcopy__(self, _: object) -> "BackboneCompiler":
        return self  # the moving average is a copy of the model, and shares it

    def __call__(self, model: SwinHierarchical, images: Tensor) -> Tensor:
        """Compute features; see `model.run_backbone`."""
        if self.compiled is None or len(images) not in self.sizes:
            return run_backbone(model, images)
        begin = time.perf_counter()
        try:
            features = self.compiled(model, images)
        except Exception as error:  # compilers fail in many ways; a real fault fails again below
            if is_out_of_memory(error):
                raise
            self._give_up(f"torch.compile does not work here ({first_line(error)})")
            return run_backbone(model, images)
        kind = (images.shape, images.dtype, model.training, torch.is_grad_enabled())
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.warm_up += time.perf_counter() - begin
        return features

    def note(self, seconds: float, steps_left: int) -> None:
        """Take in how long a step has taken since the last note, and how many the phase has left:
        begin to compile where that should pay, tell what it brought, and end it where that is
        nothing.
        """
        if self.wanted == "off" or not self.sizes:
            return
        if self.world.any(self.mode == "off"):  # it failed in one process: all do without
            self.mode, self.wanted, self.compiled = "off", "off", None
            return
        self._notes += 1
        if self._notes != 2:  # the first note after a change has the warm-up in it
            return
        if self.compiled is None:
            gain, self._before = SAVED * seconds * steps_left, seconds
            if self.world.any(gain > WARM_UP):
                say(f"compiling the backbone, which should save {duration(gain)} of this phase")
                self._compile()
            return
        told = (
            f"torch.compile: {self.warm_up:.0f} s of warm-up, then {1000 * seconds:.0f} ms a step"
        )
        if self._before:
            told += f", {1000 * self._before:.0f} ms before"
            if self.world.any(seconds >= self._before):
                self._give_up(told)
                return
            told += f"; won back after {self.warm_up / (self._before - seconds):,.0f} steps"
        say(told)

    def _compile(self) -> None:
        torch._dynamo.reset()
        for module, name, value in SETTINGS:
            config = importlib.import_module(module)  # here, as it takes a second
            if hasattr(config, name):
                setattr(config, name, value)
        self.compiled, self._notes = torch.compile(run_backbone, dynamic=False), 0

    def _give_up(self, why: str) -> None:
        warn(f"{why}: going on without.")
        self.mode, self.compiled = "off", None
