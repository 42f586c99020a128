"""What the released codes computed, from `tests/golden/`; its REFERENCE.md says what is what."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from orchestrator.core.concepts import Target
from tests.workers.unlearners.small import NoCheckpoints
from workers.interfaces.pipeline import Pipeline
from workers.interfaces.unlearner import Erasure

FOLDER = Path(__file__).parents[3] / "golden"
TOLERANCE = 1e-6
"""In fp64, relative; a few tensors have their own (REFERENCE.md, "Tolerances")."""


@dataclass
class Released:
    """One method's file: inputs, settings, and what the released code made of them.

    With `disturbed`, every input and every number of the settings that is no count is off by that
    share, up and down in turn, so that a comparison can be seen to notice it.
    """

    name: str
    disturbed: float = 0.0
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of what was compared: the relative difference and its tolerance."""

    def __post_init__(self) -> None:
        with safe_open(FOLDER / f"{self.name}.safetensors", "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata()
        self.settings: Any = _shaken(json.loads(header["settings"]), self._factors())
        self._lists: list[list[str]] = json.loads(header["parameter_lists"])
        self._list_of: dict[str, int] = json.loads(header["parameter_list_of"])

    def input(self, name: str) -> Tensor:
        """An input: fp64 if it is no whole number."""
        value = self.tensors[name]
        if not value.is_floating_point():
            return value
        turns = torch.arange(value.numel(), dtype=torch.float64).cos().view(value.shape)
        return value.double() * (1 + self.disturbed * turns)

    def expected(self, name: str) -> Tensor:
        """An output of the released code: fp64 if it is no whole number."""
        value = self.tensors[name]
        return value.double() if value.is_floating_point() else value

    def names(self, prefix: str) -> list[str]:
        """The parameters that the tensors of this prefix are about, in order."""
        return self._lists[self._list_of[prefix]]

    def compare(self, name: str, value: Tensor | float, within: float = TOLERANCE) -> None:
        """A tensor (or number) with the stored one: max|a - b| / max|b|."""
        want = self.expected(name)
        got = torch.as_tensor(value, dtype=torch.float64).detach().reshape(want.shape)
        self._note(name, _largest(got - want) / _largest(want), within)

    def compare_exactly(self, name: str, value: Tensor) -> None:
        """Whole numbers or bits with the stored ones: the share that is not equal must be 0."""
        want = self.expected(name)
        self._note(name, float((value.reshape(want.shape) != want).double().mean()), 0.0)

    def compare_changes(
        self,
        prefix: str,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        within: float = TOLERANCE,
    ) -> None:
        """What became of the parameters of `prefix`, named as in the file.

        Norms and probes relative to their largest, the stored rows of new values relative to how
        far they moved.
        """
        moved = {n: after[n].double() - before[n].double() for n in self.names(prefix)}
        self._compare_values(f"{prefix}.change_", moved, within)
        for key, want in self._rows(f"{prefix}.new."):
            new, old = after[key].double()[: len(want)], before[key].double()[: len(want)]
            far = (want - old.reshape(want.shape)).norm()
            off = (new.reshape(want.shape) - want).norm() / far
            self._note(f"{prefix}.new.{key}", float(off), within)

    def compare_values(
        self, prefix: str, values: Mapping[str, Tensor], within: float = TOLERANCE
    ) -> None:
        """Gradients and the like: norms, probes and stored rows of the values themselves."""
        self._compare_values(f"{prefix}.", {n: values[n] for n in self.names(prefix)}, within)
        for key, want in self._rows(f"{prefix}.value."):
            got = values[key].double()[: len(want)].reshape(want.shape)
            self._note(f"{prefix}.value.{key}", float((got - want).norm() / want.norm()), within)

    def check(self) -> None:
        """That everything is within its tolerance; with disturbed inputs, that something is not."""
        assert self.differences, "nothing was compared"
        wrong = {n: d for n, (d, within) in self.differences.items() if not d <= within}
        if not self.disturbed:
            assert not wrong, f"{self.name} differs from the released code: {wrong}"
        else:
            assert wrong, f"{self.name}: inputs that are {self.disturbed:.0%} off go unnoticed"

    def largest(self) -> float:
        """The largest relative difference."""
        return max(d for d, _ in self.differences.values())

    def _factors(self) -> Iterator[float]:
        return itertools.cycle([1 + self.disturbed, 1 - self.disturbed])

    def _compare_values(self, prefix: str, values: Mapping[str, Tensor], within: float) -> None:
        flat = [value.detach().double().reshape(-1) for value in values.values()]
        self.compare(f"{prefix}norm", torch.stack([v.norm() for v in flat]), within)
        steps = [torch.arange(len(v), dtype=torch.float64).cos() for v in flat]
        probes = [v @ cos for v, cos in zip(flat, steps, strict=True)]
        self.compare(f"{prefix}probe", torch.stack(probes), within)

    def _rows(self, prefix: str) -> list[tuple[str, Tensor]]:
        found = [n for n in self.tensors if n.startswith(prefix)]
        return [(n.removeprefix(prefix), self.expected(n)) for n in found]

    def _note(self, what: str, difference: float, within: float) -> None:
        self.differences[what] = (difference, within)


def erasure(pipe: Pipeline, concept: str, prompts: Any, **parts: Any) -> Erasure:
    """An erasure of `prompts`, with nothing retained and no materials unless they are given."""
    anchors = tuple(parts.pop("anchor_prompts", ()))
    given = {"retained_prompts": (), "seed": 0, "materials": {}} | parts
    return Erasure(
        pipe=pipe,
        targets=(Target(concept, tuple(prompts), anchors),),
        progress=lambda *_: None,
        checkpoints=NoCheckpoints(),
        **given,
    )


def weights(pipe: Pipeline, part: str = "unet") -> dict[str, Tensor]:
    """Copies of a part's weights by name."""
    return {n: p.detach().clone() for n, p in getattr(pipe, part).named_parameters()}


def _shaken(value: Any, factors: Iterator[float]) -> Any:
    if isinstance(value, float):
        return value * next(factors)
    if isinstance(value, list):
        return [_shaken(item, factors) for item in value]
    if isinstance(value, dict):
        return {key: _shaken(item, factors) for key, item in value.items()}
    return value


def _largest(value: Tensor) -> float:
    return float(value.abs().max())
