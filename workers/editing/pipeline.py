"""A base model kept warm: loaded once, edits applied to it and undone bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workers.editing.edits import EDITABLE, LowRank, Weights, live_parameters, snapshot
from workers.interfaces.base import Base
from workers.interfaces.edit import ModelEdit, Undo
from workers.interfaces.fit import refuse_unfit
from workers.runtime.kept import look_everywhere
from workers.runtime.progress import tell

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline


class WarmPipeline:
    """A pipeline with a pristine copy of its editable weights, named "unet.…", "text_encoder.…".

    The copy is kept on the CPU, in pinned memory if the pipeline is on a GPU, so that a reset takes
    as long as the bus does. `pipe` is the live pipeline: what edits change and samplers use.
    `edits` are those that were put last; weights may have moved since (`now` gives what they are).
    """

    def __init__(self, base: Base, device: str) -> None:
        self.base = base
        self.device = device
        self.edits: tuple[ModelEdit, ...] = ()
        self._undo: list[Undo] = []
        self._load()

    def _load(self) -> None:
        # A download cannot tell how far it is: a sign before it and one after.
        tell(0, 1)
        self.pipe: Pipeline = self.base.load(self.device)
        refuse_unfit(self.pipe, self.base.name)
        tell(0, 1)
        self._base = {name: _copy(value) for name, value in live_parameters(self.pipe).items()}

    @torch.no_grad()
    def reset(self) -> None:
        """Undo all edits: every weight is the base's again, bit for bit."""
        while self._undo:
            self._undo.pop()()
        self.edits = ()
        live = live_parameters(self.pipe)
        modules = [m for part in EDITABLE for m in getattr(self.pipe, part).modules()]
        has_hooks = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        if has_hooks or live.keys() != self._base.keys():
            # Work that raised half-way can leave modules or hooks behind; a fresh load cannot.
            look_everywhere()
            self._load()
            live = live_parameters(self.pipe)
        for name, value in live.items():
            value.copy_(self._base[name], non_blocking=True)
            value.requires_grad_(False)
            value.grad = None
        for part in EDITABLE:
            getattr(self.pipe, part).eval()
        self.pipe.unet.disable_gradient_checkpointing()

    def put(self, edits: Sequence[ModelEdit]) -> None:
        """Become the base with `edits` made to it, in order.

        Raises:
            ResurgeError: a name or a shape that the base does not have.
        """
        self.reset()
        self.add(edits)

    def add(self, edits: Sequence[ModelEdit]) -> None:
        """Make further edits to what it is now.

        Raises:
            ResurgeError: as of `put`.
        """
        for edit in edits:
            if (undo := edit.apply(self.pipe)) is not None:
                self._undo.append(undo)
        self.edits = (*self.edits, *edits)

    def now(self) -> tuple[ModelEdit, ...]:
        """Edits that make the base what the pipeline is: moved weights, and what stands beside."""
        changed = self.changed()
        beside = [edit for edit in self.edits if not isinstance(edit, Weights | LowRank)]
        return (*([Weights(changed)] if changed else []), *beside)

    def changed(self) -> dict[str, Tensor]:
        """CPU copies of the weights that differ from the base: all that an edit's result needs."""
        return {
            name: snapshot(value)
            for name, value in live_parameters(self.pipe).items()
            if not torch.equal(value.detach(), self._base[name].to(value.device, non_blocking=True))
        }

    def base_state(self) -> dict[str, Tensor]:
        """The base's weights on the CPU; not to be written to."""
        return dict(self._base)

    def state(self) -> dict[str, Tensor]:
        """The present weights on the CPU, a snapshot that shares what the base already holds."""
        return self._base | self.changed()


def _copy(value: Tensor) -> Tensor:
    """On the CPU, where a GPU can fetch it without help."""
    copy = snapshot(value)
    return copy.pin_memory() if value.is_cuda else copy
