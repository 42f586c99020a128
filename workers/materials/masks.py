"""Where in each picture the object is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from orchestrator.core.errors import ResurgeError
from orchestrator.core.settings import Settings
from workers.data.files import PlaceText
from workers.data.pinned import Source
from workers.erasure.materials import Pictures
from workers.interfaces.material import Made, Material, Work

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CLIPSEG = "CIDAS/clipseg-rd64-refined"


class MasksSettings(Settings):
    """How objects are found."""

    segmenter: Literal["contrast", "clipseg"] = Field(
        "contrast",
        description="contrast: pixels unlike the picture's border (plain backgrounds); "
        "clipseg: a text-guided segmenter (Lüddecke and Ecker, CVPR 2022)",
    )
    threshold: float = Field(
        0.15, gt=0, lt=1, description="contrast: distance in [0, 1]; clipseg: probability"
    )
    model: PlaceText = Field(CLIPSEG, description="clipseg's folder or repository id")
    revision: str | None = Field(None, description="clipseg's commit")


class Masks(Material):
    """Masks (n, height, width) of the object in each of the pictures it is made from."""

    name = "masks"
    version = 1
    Settings = MasksSettings
    settings: MasksSettings

    def fingerprint(self) -> str:
        """sha256 of clipseg's folder; its repository's name and commit are settings."""
        is_folder = self.settings.segmenter == "clipseg" and self._source.path.is_dir()
        return self._source.digest() if is_folder else ""

    @property
    def _source(self) -> Source:
        return Source(self.settings.model, self.settings.revision)

    def make(self, work: Work) -> Made:
        """Find the object in every picture.

        Raises:
            ResurgeError: not one picture has an object.
        """
        pictures: Pictures = work.source
        if self.settings.segmenter == "contrast":
            masks = unlike_border(pictures.images, self.settings.threshold)
        else:
            masks = self._clipseg(pictures, str(work.asked["object"]), work)
        share = float(masks.float().mean())
        if share == 0:
            raise ResurgeError(
                f"no picture has an object above the threshold {self.settings.threshold:g}; "
                "lower it, or use another segmenter"
            )
        return Made({"masks": masks}, {"area": share})

    def read(self, tensors: Mapping[str, Tensor], asked: Mapping[str, Any]) -> Tensor:
        """bool (n, height, width)."""
        return tensors["masks"]

    def _clipseg(self, pictures: Pictures, text: str, work: Work) -> Tensor:
        import torch
        from torch.nn import functional
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        from workers.data.loading import load_part, load_weights

        source = self._source
        segmenter: nn.Module = load_weights(
            CLIPSegForImageSegmentation, source.where, source.revision, use_safetensors=True
        )
        processor = load_part(CLIPSegProcessor, source)
        segmenter.to(work.pipe.device).eval()
        found = []
        for index, image in enumerate(pictures.images):
            rows = image.permute(1, 2, 0).numpy()
            inputs = processor(text=[text], images=[rows], return_tensors="pt")
            with torch.inference_mode():
                logits = segmenter(**inputs.to(work.pipe.device)).logits
            logits = logits.reshape(1, 1, *logits.shape[-2:]).float()
            sized = functional.interpolate(logits, image.shape[-2:], mode="bilinear")
            found.append((sized[0, 0].sigmoid() > self.settings.threshold).cpu())
            work.progress(index + 1, len(pictures), {})
        return torch.stack(found)


def unlike_border(images: Tensor, threshold: float) -> torch.Tensor:
    """Pixels whose colour is further than `threshold` from the median of the picture's border.

    Images uint8 (n, 3, height, width) -> bool (n, height, width). The distance is the largest over
    the channels, as a share of the full range.
    """
    import torch

    unit = images.float() / 255
    sides = (unit[..., 0, :], unit[..., -1, :], unit[..., :, 0], unit[..., :, -1])
    border = torch.cat(sides, dim=2).median(dim=2).values
    return (unit - border[..., None, None]).abs().amax(dim=1) > threshold
