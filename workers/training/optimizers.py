"""The optimisers that fine-tuning can be told to use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from orchestrator.core.errors import ResurgeError
from workers.recipes import FinetuneSettings

INSTALL = "pip install 'resurge[optimizers]'"


def new_optimizer(
    settings: FinetuneSettings, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The settings' optimiser of `parameters`.

    AdamW (Loshchilov and Hutter 2019); the same with 8-bit moments (Dettmers et al. 2022, through
    bitsandbytes); SGD with momentum; Adafactor (Shazeer and Stern 2018, torch's); schedule-free
    AdamW (Defazio et al. 2024, through schedulefree).

    Raises:
        ResurgeError: it needs a package that is not installed.
    """
    s, values = settings, list(parameters)
    betas = (s.beta1, s.beta2)
    common: Any = {"lr": s.learning_rate, "weight_decay": s.weight_decay}
    if s.optimizer == "sgd":
        return torch.optim.SGD(values, momentum=s.momentum, **common)
    if s.optimizer == "adafactor":
        return torch.optim.Adafactor(values, **common)
    if s.optimizer == "adamw8bit":
        made: Any = _package("bitsandbytes", s).optim.AdamW8bit(values, betas=betas, **common)
        return made  # type: ignore[no-any-return]
    if s.optimizer == "schedule_free":
        made = _package("schedulefree", s).AdamWScheduleFree(values, betas=betas, **common)
        made.train()
        return made  # type: ignore[no-any-return]
    return torch.optim.AdamW(values, betas=betas, fused=True, **common)


def show_average(optimizer: torch.optim.Optimizer) -> None:
    """Put what a schedule-free optimiser averages into the weights; others have no such thing."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()


def go_on(optimizer: torch.optim.Optimizer) -> None:
    """Take up training from weights that were put back as they were before `show_average`.

    The optimiser's own way back would leave rounding errors, and a training that was looked at
    would end elsewhere.
    """
    for group in optimizer.param_groups:
        if "train_mode" in group:
            group["train_mode"] = True


def _package(name: str, settings: FinetuneSettings) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ResurgeError(
            f"finetune.optimizer {settings.optimizer!r} needs the package {name}, which is not "
            f"installed: {INSTALL}"
        ) from error
