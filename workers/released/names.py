"""What files call weights, and whether these are a model's: by names and shapes, without torch.

Weights are called "unet.…" and "text_encoder.…" here. transformers dropped "text_model." from the
names in a text encoder, and files have it or not: it is left out wherever names are compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from orchestrator.core.errors import ResurgeError
from orchestrator.core.text import some
from workers.data.loading import NO_WEIGHTS
from workers.data.pipeline_files import OF_OTHERS, header_of
from workers.released.source import Released

Shapes = Mapping[str, tuple[int, ...]]

LDM = "model.diffusion_model."
"""How the UNet's names begin in original Stable Diffusion checkpoints."""
LDM_TEXT = "cond_stage_model.transformer."
LDM_OTHER_TEXT = "cond_stage_model.model."
_UNET = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.", "up_blocks.",
         "conv_norm_out.", "conv_out.")  # fmt: skip
_TEXT = ("embeddings.", "encoder.", "final_layer_norm.")


def canonical(name: str) -> str:
    """The name by which weights are compared, of one that begins with its part's."""
    part, _, rest = name.partition(".")
    return f"{part}.{rest.removeprefix('text_model.')}" if part == "text_encoder" else name


def canonical_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The same of a mapping's names."""
    return {canonical(name): shape for name, shape in shapes.items()}


def is_ldm(names: Iterable[str]) -> bool:
    """Whether a file has its UNet under the names of original checkpoints."""
    return any(name.startswith((LDM, "input_blocks.")) for name in names)


def in_parts(path: str, names: Iterable[str]) -> dict[str, str]:
    """A lone file's names, in diffusers' keys, by what they are called here.

    Raises:
        ResurgeError: some are neither a UNet's nor a text encoder's.
    """
    found, others = {}, []
    for name in names:
        bare = name.removeprefix("unet.").removeprefix("text_encoder.").removeprefix("text_model.")
        if NO_WEIGHTS.search(name):
            continue
        if bare.startswith(_UNET) and not name.startswith("text_"):
            found[f"unet.{bare}"] = name
        elif bare.startswith(_TEXT) and not name.startswith("unet."):
            found[f"text_encoder.{bare}"] = name
        else:
            others.append(name)
    if others:
        family = next((f for start, f in OF_OTHERS.items() if others[0].startswith(start)), None)
        what = f"is {family} checkpoint" if family else f"has {some(sorted(others))}"
        raise ResurgeError(
            f"{path} {what}, which is no weight of a Stable Diffusion 1.x or 2.x UNet or text "
            "encoder in diffusers' or the original names"
        )
    return found


def named_shapes(released: Released) -> dict[str, tuple[int, ...]] | None:
    """Shapes by the names here, from headers; None where names are the original checkpoints'.

    Raises:
        ResurgeError: as `in_parts`.
    """
    found = {
        canonical(f"{part}.{name}"): shape
        for part, path in released.parts
        for name, shape in header_of(path).shapes.items()
        if not NO_WEIGHTS.search(name)
    }
    for path in released.files:
        shapes = header_of(path).shapes
        if is_ldm(shapes):
            return None
        found |= {name: shapes[own] for name, own in in_parts(str(path), shapes).items()}
    return found


def refuse_other_shapes(
    where: str, given: Shapes, model: Shapes, whole: Collection[str] = ()
) -> None:
    """See that weights are a model's, both by canonical names; of the parts in `whole`, all.

    Raises:
        ResurgeError: names a few that are not.
    """
    wrong = {
        "not the model's": [name for name in given if name not in model],
        "of another shape": [
            f"{name} {list(given[name])} for {list(model[name])}"
            for name in given
            if name in model and tuple(given[name]) != tuple(model[name])
        ],
        "missing": [
            name for name in model if name.partition(".")[0] in whole and name not in given
        ],
    }
    said = [f"{what}: {some(sorted(names))}" for what, names in wrong.items() if names]
    if said or not given:
        raise ResurgeError(
            f"the weights in {where} do not fit the base ({'; '.join(said) or 'there are none'}); "
            "were they made with another base?"
        )
