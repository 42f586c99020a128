import pytest
import torch

from tests.workers.unlearners.golden.drawn import draw_stored
from tests.workers.unlearners.golden.released import erasure, weights
from workers.unlearners.esd import ESD

CASES = {
    "x": "sd-newer-x",
    "x_strict": "sd-newer-x-strict",
    "u": "sd-newer-u",
    "from": "sd-newer-x",
    "y2023_x": "sd-style",
    "y2023_noxattn": "sd-object",
}
"""With the preset that computes so."""


@pytest.mark.parametrize("case", CASES)
def test_the_whole_training(shapes, released, monkeypatch, case):
    with released("esd") as golden:
        asked = golden.settings["cases"][case]
        before = weights(shapes)
        stops = "steps_taken_until" if "2023" in case else "k"
        given = [golden.input(f"{case}.{name}") for name in ("start", stops, "t", "x_t")]
        seen = draw_stored(monkeypatch, *given)
        method = ESD(
            ESD.Settings(
                preset=CASES[case],
                precision="fp32",
                negative_guidance=asked["eta"],
                erase_from=asked.get("erase_from"),
                **{n: asked[n] for n in ("iterations", "learning_rate", "start_guidance")},
            )
        )
        method.unlearn(erasure(shapes, "star", [asked["prompt"]]))
        golden.compare_exactly(f"{case}.t", torch.tensor(seen.t))
        golden.compare(f"{case}.x_t", torch.cat(seen.x_t))
        golden.compare(f"{case}.target", torch.cat(seen.targets))
        golden.compare(f"{case}.loss", torch.stack(seen.losses))
        golden.compare_changes(case, before, weights(shapes))
