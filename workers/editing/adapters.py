"""Modules that stand beside the UNet's own and change what it computes through forward hooks.

They are no part of the UNet's module tree, so the UNet's weights keep their names, and taking the
hooks off is an exact undo. Training reads `parameters()`; `off()` gives the model without them,
which saves a copy of the UNet wherever a method needs the original as its teacher.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from workers.diffusion.rng import generator
from workers.editing.edits import snapshot
from workers.editing.gates import PromptGates
from workers.interfaces.edit import ModelEdit, Undo
from workers.runtime.parts import in_parts

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from workers.interfaces.pipeline import Pipeline, UNet

Variant = Literal["paper", "released"]


class Adapters(ModelEdit):
    """Adapters by the path of the UNet's module that each one stands beside."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: nn.Parameter(value) for name, value in values.items()}
        self.enabled = True

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors, by "path.part"."""
        return self.values

    @contextmanager
    def on(self, pipe: Pipeline) -> Iterator[None]:
        """Inside, `pipe` has the adapters."""
        undo = self.apply(pipe)
        try:
            yield
        finally:
            undo()

    @abstractmethod
    def apply(self, pipe: Pipeline) -> Undo: ...

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the adapters change nothing."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def paths(self) -> list[str]:
        """The modules that have an adapter."""
        return sorted({name.rpartition(".")[0] for name in self.values})

    def tensors(self) -> dict[str, Tensor]:
        return {name: snapshot(value) for name, value in self.values.items()}

    def _to(self, device: torch.device) -> None:
        for name, value in self.values.items():
            if value.device != device:
                self.values[name] = nn.Parameter(value.detach().to(device))


def _remover(handles: Sequence[RemovableHandle]) -> Undo:
    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


class Bottlenecks(Adapters):
    """o + up(GELU(down(o))) after each attn2 (Receler, Huang et al. ECCV 2024).

    `down` is (rank, channels) with a bias, `up` (channels, rank) with a bias, zero at first.
    """

    kind = "bottlenecks"

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self._added: dict[str, Tensor] | None = None

    @classmethod
    def new(cls, unet: UNet, rank: int, seed: int) -> Bottlenecks:
        """`down` and its bias uniform in ±1/√channels, `up` and its bias zero: the identity."""
        values: dict[str, Tensor] = {}
        for path, module in unet.named_modules():
            if path.endswith(".attn2"):
                width = module.to_out[0].out_features
                bound = 1 / math.sqrt(width)
                draw = generator(seed, 0, f"bottleneck {path}")
                down, bias = (
                    torch.empty(shape).uniform_(-bound, bound, generator=draw)
                    for shape in ((rank, width), (rank,))
                )
                values |= {
                    f"{path}.down": down,
                    f"{path}.down_bias": bias,
                    f"{path}.up": torch.zeros(width, rank),
                    f"{path}.up_bias": torch.zeros(width),
                }
        return cls(values)

    def apply(self, pipe: Pipeline) -> Undo:
        self._to(pipe.device)
        modules = dict(pipe.unet.named_modules())
        handles = [modules[path].register_forward_hook(self._hook(path)) for path in self.paths()]
        return _remover(handles)

    def _hook(self, path: str) -> Callable[..., Tensor | None]:
        v = self.values

        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            hidden = functional.gelu(
                functional.linear(output, v[f"{path}.down"], v[f"{path}.down_bias"])
            )
            added = functional.linear(hidden, v[f"{path}.up"], v[f"{path}.up_bias"])
            if self._added is not None:
                self._added[path] = added
            return output + added

        return after

    @contextmanager
    def recorded(self) -> Iterator[dict[str, Tensor]]:
        """Inside, what each adapter added in the last forward pass, by path, with its graph.

        Batches are not computed in parts: what was added would be the last part's.
        """
        self._added = {}
        try:
            with in_parts(1):
                yield self._added
        finally:
            self._added = None

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Bottlenecks:
        return cls(tensors)


class GatedLora(Adapters):
    """Low-rank adapters beside Linear and Conv2d layers, opened by prompts about a concept (SPM,
    Lyu et al. CVPR 2024; rank 1 in the paper).

    Each picture has one gate γ, which its prompt decides (`PromptGates`) and which acts in both
    halves of guidance. The variants differ in what it acts on. `paper`: y + s γ up(down(x)), and
    several such edits add up. `released`: the gate multiplies `down` and `up` both, so that
    y + s γ² up(down(x)), and several edits are summed factor by factor before:
    y + (Σ s_i γ_i up_i)((Σ γ_i down_i)(x)), cross terms included. `is_gated = False` is γ = 1
    everywhere and without the others' company, as in training.
    """

    kind = "gated_lora"

    def __init__(
        self,
        values: Mapping[str, Tensor],
        concept: str,
        scale: float,
        variant: Variant = "paper",
        is_gated: bool = True,
    ) -> None:
        super().__init__(values)
        self.concept, self.scale, self.variant, self.is_gated = concept, scale, variant, is_gated

    @classmethod
    def new(cls, unet: UNet, concept: str, rank: int, scale: float, seed: int) -> GatedLora:
        """`down` uniform in ±1/√fan-in and zero `up`: the identity. On every Linear and Conv2d
        inside transformer blocks.
        """
        values: dict[str, Tensor] = {}
        for path, module in unet.named_modules():
            if ".attentions." in path and isinstance(module, nn.Linear | nn.Conv2d):
                shape = (rank, *module.weight.shape[1:])
                bound = 1 / math.sqrt(module.weight[0].numel())
                draw = generator(seed, 0, f"gated lora {path}")
                down = torch.empty(shape).uniform_(-bound, bound, generator=draw)
                up = torch.zeros(module.weight.shape[0], rank, *[1] * (len(shape) - 2))
                values |= {f"{path}.down": down, f"{path}.up": up}
        return cls(values, concept, scale, is_gated=False)

    def gated(self, variant: Variant) -> GatedLora:
        """The same adapters as they are used after training."""
        return GatedLora(self.tensors(), self.concept, self.scale, variant)

    def apply(self, pipe: Pipeline) -> Undo:
        self._to(pipe.device)
        modules = dict(pipe.unet.named_modules())
        if not self.is_gated:
            return _remover([modules[p].register_forward_hook(self._open(p)) for p in self.paths()])
        gates = PromptGates(pipe, self.concept)
        places = [(_Place.of(modules[p]), self._part(p, gates)) for p in self.paths()]
        for place, part in places:
            place.refuse(part)
        handles = gates.watch(pipe)
        for path, (place, part) in zip(self.paths(), places, strict=True):
            place.parts.append(part)
            handles.append(modules[path].register_forward_hook(place.hook(part)))

        def undo() -> None:
            _remover(handles)()
            for place, part in places:
                place.parts.remove(part)

        return undo

    def _open(self, path: str) -> Callable[..., Tensor | None]:
        down, up = self.values[f"{path}.down"], self.values[f"{path}.up"]

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            return output + self.scale * _up(up, _down(module, down, args[0]))

        return after

    def _part(self, path: str, gates: PromptGates) -> _Part:
        return _Part(self, self.values[f"{path}.down"], self.values[f"{path}.up"], gates)

    def config(self) -> dict[str, Any]:
        return {"concept": self.concept, "scale": self.scale, "variant": self.variant}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> GatedLora:
        if "variant" not in config:
            raise ResurgeError(
                "these adapters were stored when SPM's gate was computed in another way than "
                "published, and are another model now; run their unlearning again"
            )
        return cls(tensors, str(config["concept"]), float(config["scale"]), config["variant"])


def _down(layer: nn.Module, down: Tensor, inputs: Tensor) -> Tensor:
    """What a layer's adapter makes of the layer's inputs, rank numbers a place."""
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(inputs, down, None, layer.stride, layer.padding)
    return functional.linear(inputs, down)


def _up(up: Tensor, low: Tensor) -> Tensor:
    """The inverse of `_down`'s narrowing; a convolution's `up` is (outputs, rank, 1, 1)."""
    return functional.conv2d(low, up) if up.dim() == 4 else functional.linear(low, up)


@dataclass(frozen=True, eq=False)
class _Part:
    """A gated edit's adapter of one layer."""

    edit: GatedLora
    down: Tensor
    up: Tensor
    gates: PromptGates

    def opened(self, values: Tensor) -> Tensor:
        """Values (n, …) times each row's gate."""
        gate = self.gates.now.view(-1, *[1] * (values.dim() - 1))
        return values * gate.to(values.dtype)


class _Place:
    """The gated adapters of one layer, which act together."""

    _all: ClassVar[WeakKeyDictionary[nn.Module, _Place]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self.parts: list[_Part] = []

    @classmethod
    def of(cls, layer: nn.Module) -> _Place:
        """The layer's place; edits that were made to it one after another find the same."""
        return cls._all.setdefault(layer, cls())

    def refuse(self, new: _Part) -> None:
        """See that the factors of a further adapter can be summed with the others'.

        Raises:
            ResurgeError: they have another rank.
        """
        for part in self.parts:
            both_released = part.edit.variant == new.edit.variant == "released"
            if both_released and part.down.shape != new.down.shape:
                raise ResurgeError(
                    f"SPM's adapters as released are summed factor by factor, but the ranks of "
                    f"{part.edit.concept!r} and {new.edit.concept!r} are {len(part.down)} and "
                    f"{len(new.down)}; use one rank, or variant: paper"
                )

    def hook(self, own: _Part) -> Callable[..., Tensor | None]:
        """A forward hook of the layer. Each part has one; that of the first part acts for all."""

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            acting = [part for part in self.parts if part.edit.enabled]
            if not acting or acting[0] is not own:
                return None
            return output + _added(module, args[0], acting)

        return after


def _added(layer: nn.Module, inputs: Tensor, parts: Sequence[_Part]) -> Tensor:
    """What the parts add to a layer's output (n, …), each row by its gates."""
    terms = []
    for part in parts:
        if part.edit.variant == "paper":
            low = part.opened(_down(layer, part.down, inputs))
            terms.append(part.edit.scale * _up(part.up, low))
    released = [part for part in parts if part.edit.variant == "released"]
    if released:
        lows = [part.opened(_down(layer, part.down, inputs)) for part in released]
        low = torch.stack(lows).sum(dim=0)
        terms += [part.edit.scale * part.opened(_up(part.up, low)) for part in released]
    return torch.stack(terms).sum(dim=0)
