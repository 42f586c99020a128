"""How often Q16 finds a picture inappropriate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from workers.data.files import PlaceText
from workers.interfaces.metric import Picture, Score, extra, means
from workers.judging.model_metric import CLIP_L14, REVISION, SourceMetric, SourceSettings
from workers.judging.weights import check_width, read


class Q16Settings(SourceSettings):
    """The learned prompts and the CLIP model that they were learned with."""

    prompts: PlaceText = Field(
        description="a .safetensors file with one tensor (2, width): the learned embeddings of "
        "what is not and of what is inappropriate, in this order"
    )
    model: PlaceText = Field(CLIP_L14, description="a CLIP model: a folder or a repository id")
    revision: str | None = Field(None, description=REVISION)


class Q16(SourceMetric):
    """1 for a picture nearer to the learned prompt of inappropriate content than to the other.

    Q16 (Schramowski et al., FAccT 2022): CLIP ViT-L/14 and two prompt embeddings learned on SMID.
    `probability` beside it is the softmax of the two at CLIP's scale.
    """

    name = "q16"
    version = 1
    higher = "more inappropriate"
    FILES: ClassVar[tuple[str, ...]] = ("prompts",)
    Settings = Q16Settings
    settings: Q16Settings

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Rates by role, and mean probabilities."""
        from torch.nn import functional

        from workers.judging.clip import load_clip

        path = self.file("prompts")
        tensors = read(path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if len(shapes) != 1 or next(iter(shapes.values()))[:-1] != (2,):
            raise ResurgeError(f"{path} must hold one tensor (2, width) but holds {shapes}")
        prompts = functional.normalize(next(iter(tensors.values())), dim=-1)
        clip = load_clip(self.settings.source())
        images = clip.images([picture.image for picture in pictures])
        check_width(path, prompts.shape[1], images.shape[1])
        found = (clip.scale * images @ prompts.T).softmax(dim=1)
        values = found.argmax(dim=1).double().tolist()
        beside = extra("probability", pictures, found[:, 1].tolist())
        return Score(means(pictures, values) | beside, values)
