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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.diffusion.rng import generator, normal
from workers.diffusion.text import end_index
from workers.editing.edits import snapshot
from workers.interfaces.edit import ModelEdit, Undo
from workers.runtime.parts import in_parts

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from workers.interfaces.pipeline import Pipeline, UNet

FINGERPRINT_WIDTH = 64


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
        """Kaiming-uniform `down` and zero `up`: the identity."""
        values: dict[str, Tensor] = {}
        for path, module in unet.named_modules():
            if path.endswith(".attn2"):
                width = module.to_out[0].out_features
                down = torch.empty(rank, width)
                draw = generator(seed, 0, f"bottleneck {path}")
                nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=draw)
                values |= {
                    f"{path}.down": down,
                    f"{path}.down_bias": torch.zeros(rank),
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
    """y + γ(prompt) · up(down(x)) beside Linear and Conv2d layers (SPM, Lyu et al. CVPR 2024).

    The rank is 1 in the paper. The gate γ is one number a prompt (`gate`): near 1 where the prompt
    is about the erased concept, small elsewhere. A prompt is known when it went through the
    pipeline's text encoder; in the UNet its embedding is recognised by a fingerprint, on the
    device. `is_gated = False` is γ = 1 everywhere, as in training.
    """

    kind = "gated_lora"

    def __init__(
        self, values: Mapping[str, Tensor], concept: str, scale: float, is_gated: bool = True
    ) -> None:
        super().__init__(values)
        self.concept, self.scale, self.is_gated = concept, scale, is_gated

    @classmethod
    def new(
        cls,
        unet: UNet,
        concept: str,
        rank: int,
        scale: float,
        seed: int,
        only: tuple[str, ...] = ("",),
    ) -> GatedLora:
        """Kaiming-uniform `down` and zero `up`: the identity. On every layer inside transformer
        blocks, or on those whose path ends with one of `only`.
        """
        values: dict[str, Tensor] = {}
        for path, module in unet.named_modules():
            if not (".attentions." in path and path.endswith(only)):
                continue
            if isinstance(module, nn.Linear | nn.Conv2d):
                shape = (rank, *module.weight.shape[1:])
                draw = generator(seed, 0, f"gated lora {path}")
                down = nn.init.kaiming_uniform_(torch.empty(shape), a=1, generator=draw)
                up = torch.zeros(module.weight.shape[0], rank, *[1] * (len(shape) - 2))
                values |= {f"{path}.down": down, f"{path}.up": up}
        return cls(values, concept, scale, is_gated=False)

    def gated(self) -> GatedLora:
        """The same adapters as they are used after training."""
        return GatedLora(self.tensors(), self.concept, self.scale)

    def apply(self, pipe: Pipeline) -> Undo:
        self._to(pipe.device)
        modules = dict(pipe.unet.named_modules())
        gates = PromptGates(pipe, self.concept) if self.is_gated else None
        handles = [modules[p].register_forward_hook(self._hook(p, gates)) for p in self.paths()]
        if gates is not None:
            handles.append(pipe.text_encoder.register_forward_hook(gates.note))
            handles.append(pipe.unet.register_forward_pre_hook(gates.look_up, with_kwargs=True))
        return _remover(handles)

    def _hook(self, path: str, gates: PromptGates | None) -> Callable[..., Tensor | None]:
        down, up = self.values[f"{path}.down"], self.values[f"{path}.up"]

        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            if isinstance(module, nn.Conv2d):
                low = functional.conv2d(args[0], down, None, module.stride, module.padding)
                added = functional.conv2d(low, up)
            else:
                added = functional.linear(functional.linear(args[0], down), up)
            if gates is not None:
                added = added * gates.now.view(-1, *[1] * (added.dim() - 1)).to(added.dtype)
            return output + self.scale * added

        return after

    def config(self) -> dict[str, Any]:
        return {"concept": self.concept, "scale": self.scale}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> GatedLora:
        return cls(tensors, str(config["concept"]), float(config["scale"]))


class PromptGates:
    """SPM's gate of every prompt that the text encoder has seen.

    γ(p) = max(cos(E(p), E(c)), |T(p) ∩ T(c)| / |T(c)|): E the text encoder's output at the end
    token, T the set of a text's word tokens ("Facilitated Transport" in the paper).
    """

    def __init__(self, pipe: Pipeline, concept: str) -> None:
        self._end = pipe.tokenizer.eos_token_id
        self._start = pipe.tokenizer.bos_token_id
        encoded = pipe.tokenizer(
            concept, padding="max_length", truncation=True, return_tensors="pt",
            max_length=pipe.tokenizer.model_max_length,
        )  # fmt: skip
        ids = encoded.input_ids
        with torch.no_grad():
            hidden = pipe.text_encoder(ids.to(pipe.device))[0]
        self._concept = hidden[0, end_index(ids[0].tolist(), self._end)].float()
        self._words = self._words_of(ids[0].tolist())
        shape = (hidden[0].numel(), FINGERPRINT_WIDTH)
        self._projection = normal(shape, 0, 0, "fingerprint", pipe.device) / math.sqrt(shape[0])
        self._known: dict[tuple[int, ...], None] = {}
        self._prints = torch.empty(0, FINGERPRINT_WIDTH, device=pipe.device)
        self._values = torch.empty(0, device=pipe.device)
        self.now = torch.ones(1, device=pipe.device)
        """The gates (n,) of the UNet's pass that is under way."""

    def look_up(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A forward hook before the UNet: find its prompts' gates."""
        self.now = self.gates(kwargs["encoder_hidden_states"] if len(args) < 3 else args[2])

    def note(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        """A forward hook of the text encoder: remember its prompts' gates."""
        hidden = output[0].detach()
        for ids, states in zip(args[0].tolist(), hidden, strict=True):
            if (key := tuple(ids)) not in self._known:
                self._known[key] = None
                self._prints = torch.cat([self._prints, self._print(states[None])])
                self._values = torch.cat([self._values, self.gate(ids, states)[None]])

    def gate(self, ids: list[int], states: Tensor) -> Tensor:
        """γ of one prompt: its token ids, and its hidden states (tokens, width)."""
        at_end = states[end_index(ids, self._end)].float()
        near = functional.cosine_similarity(at_end, self._concept, dim=0)
        shared = len(self._words_of(ids) & self._words) / max(1, len(self._words))
        return near.clamp_min(shared)

    def gates(self, text: Tensor) -> Tensor:
        """The gates (n,) of embeddings (n, tokens, width); 1 for text that was never encoded."""
        if not len(self._prints):
            return torch.ones(len(text), device=text.device)
        distances = torch.cdist(self._print(text), self._prints)
        near, place = distances.min(dim=1)
        norms = self._prints[place].norm(dim=1)
        return torch.where(near < 1e-2 * norms, self._values[place], torch.ones_like(near))

    def _print(self, text: Tensor) -> Tensor:
        return text.flatten(1).float() @ self._projection

    def _words_of(self, ids: list[int]) -> set[int]:
        return set(ids[: end_index(ids, self._end)]) - {self._start}
