"""How well a picture fits its prompt, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from workers.data.files import PlaceText
from workers.interfaces.metric import Picture, Score, means
from workers.judging.model_metric import CLIP_L14, REVISION, SourceMetric, SourceSettings


class ClipScoreSettings(SourceSettings):
    """Which CLIP model, and the number that its cosine is multiplied by."""

    model: PlaceText = Field(CLIP_L14, description="a CLIP model: a folder or a repository id")
    revision: str | None = Field(None, description=REVISION)
    scale: float = Field(
        100.0, gt=0, description="times the cosine: 100, 1 or, by Hessel et al., 2.5"
    )
    prefix: str = Field(
        "", description="put before the prompt; 'A photo depicts ' by Hessel et al."
    )


class ClipScore(SourceMetric):
    """scale · max(0, cos) of a picture's and its prompt's CLIP embeddings.

    CLIPScore (Hessel et al., EMNLP 2021), there with scale 2.5, ViT-B/32 and a prefix.
    """

    name = "clip_score"
    version = 1
    values = (0.0, None)
    higher = "a better fit to the prompt"
    Settings = ClipScoreSettings
    settings: ClipScoreSettings

    def score_images(self, pictures: Sequence[Picture], reference: Sequence[Picture] = ()) -> Score:
        """Means by role."""
        from workers.judging.clip import load_clip

        s, clip = self.settings, load_clip(self.settings.source())
        prompts = list(dict.fromkeys(picture.probe.prompt for picture in pictures))
        texts = clip.texts([s.prefix + prompt for prompt in prompts])
        rows = [prompts.index(picture.probe.prompt) for picture in pictures]
        images = clip.images([picture.image for picture in pictures])
        cosines = (images * texts[rows]).sum(dim=1)
        values = (s.scale * cosines.clamp(min=0)).tolist()
        return Score(means(pictures, values), values)
