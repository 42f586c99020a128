"""Models read by transformers and diffusers: every weight from the files, or an error.

Left alone, the readers fill what a file lacks with random numbers and say so in a warning. All
loading of models goes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import some
from workers.data.hub_access import asking_the_hub
from workers.data.pinned import Source, sentence

if TYPE_CHECKING:
    from torch import nn

NO_WEIGHTS = re.compile(r"(^|\.)(position_ids|num_batches_tracked)$")
"""Buffers that a file may have or lack: counted up anew, or read in training alone."""


def load_part(kind: Any, source: Source, **options: Any) -> Any:
    """`kind.from_pretrained` of a source, quiet: of what has no weights, such as a tokenizer.

    Raises:
        ResurgeError: it is not there, or of another kind.
    """
    be_quiet()
    try:
        with asking_the_hub(source):
            return kind.from_pretrained(**source.options(), **options)
    except (ResurgeError, MemoryError):
        raise
    except Exception as error:  # the readers raise whatever they trip over
        raise _not_loaded(kind, source.name, source.revision, sentence(error)) from error


def load_weights(
    kind: Any, where: str, revision: str | None = None, part: str = "", **options: Any
) -> Any:
    """The same of a model: of `where`, or of its folder `part`.

    Raises:
        ResurgeError: as `load_part`; or its files lack weights of the model, or have others.
    """
    be_quiet()
    own: dict[str, Any] = {"subfolder": part} if part else {}
    if kind.__module__.startswith("transformers."):
        # It raises without a name otherwise; diffusers names the first.
        own["ignore_mismatched_sizes"] = True
    try:
        with asking_the_hub(Source(where, revision)):
            model, found = kind.from_pretrained(
                where, revision=revision, output_loading_info=True, **own, **options
            )
    except (ResurgeError, MemoryError):
        raise
    except Exception as error:
        name = str(Path(where) / part) if part else where
        raise _not_loaded(kind, name, revision, sentence(error)) from error
    name = f"{where}, {part}" if part else where
    refuse_wrong_keys(
        kind.__name__,
        name,
        missing=found["missing_keys"],
        unexpected=found["unexpected_keys"],
        mismatched=[_shapes(*entry) for entry in found["mismatched_keys"]],
    )
    return model


def load_model(kind: Any, source: Source) -> Any:
    """A model to be asked only: fp32, in evaluation mode, on the GPU if there is one."""
    import torch

    model = load_weights(kind, source.where, source.revision, use_safetensors=True)
    model = model.float().eval().requires_grad_(False)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def refuse_wrong_keys(
    kind: str,
    where: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    mismatched: Iterable[str] = (),
) -> None:
    """See that a model's files had its weights, all of them and no others.

    Raises:
        ResurgeError: names a few of them.
    """
    wrong: Mapping[str, Iterable[str]] = {
        "missing": missing, "not the model's": unexpected, "of another shape": mismatched,
    }  # fmt: skip
    named = {
        what: sorted(key for key in keys if not NO_WEIGHTS.search(key))
        for what, keys in wrong.items()
    }
    said = [f"{what}: {some(keys)}" for what, keys in named.items() if keys]
    if said:
        raise ResurgeError(
            f"the weights in {where} are not those of a {kind} with its config.json ("
            f"{'; '.join(said)}); what is missing would be random numbers: take the whole model, "
            "with the config.json that it was saved with"
        )


def unloaded(model: nn.Module) -> list[str]:
    """The names of weights that a reader left without numbers."""
    return [name for name, value in model.named_parameters() if value.is_meta]


def _shapes(key: str, ours: Any, theirs: Any) -> str:
    return f"{key} ({tuple(ours)} for {tuple(theirs)})"


def be_quiet() -> None:
    """A worker's log is read later, where bars and advice to train are noise."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _not_loaded(kind: Any, name: str, revision: str | None, why: str) -> ResurgeError:
    at = f" at {revision}" if revision else ""
    library = kind.__module__.partition(".")[0]
    return ResurgeError(
        f"cannot load {kind.__name__} from {name!r}{at}: {why}; it must be a model of {library} "
        "with its weights in safetensors"
    )
