import pytest
import torch

from tests.workers.unlearners.golden.released import erasure, weights
from tests.workers.unlearners.steps import draw, pictures, watch
from workers.unlearners.concept_ablation import ConceptAblation

CASES = ["plain", "clipped", "masked", "prior", "unblocked"]


@pytest.mark.parametrize("case", CASES)
def test_three_updates(shapes, released, monkeypatch, case):
    with released("concept_ablation") as golden:
        s, before, steps = golden.settings, weights(shapes), watch(monkeypatch)
        asked, count = s["cases"][case], s["batch_size"]
        noisy = []

        def drawn(step, stream):
            # The pictures of the prior come after those to ablate; one mask for all steps.
            own = slice(count, None) if stream == "prior" else slice(count)
            given = {n: golden.input(f"{case}.{n}")[step][own] for n in ("t", "noise")}
            rows = torch.arange(count) + (count if stream == "prior" else 0)
            return given | {"rows": rows, "mask": golden.input(f"{case}.mask")}

        draw(monkeypatch, drawn, noisy)
        latents = torch.cat([golden.input("anchor_latents"), golden.input("prior_latents")])
        settings = {n: s[n] for n in ("batch_size", "iterations", "learning_rate", "weight_decay")}
        settings |= {n: asked[n] for n in ("clip_norm", "prior_weight")}
        variant = "released" if asked["start_token_blocked"] else "paper"
        ConceptAblation(ConceptAblation.Settings(variant=variant, **settings)).unlearn(
            erasure(
                shapes,
                asked["concept"],
                asked["target_prompts"],
                anchor_prompts=asked["anchor_prompts"],
                materials={"anchor": pictures(latents, asked["anchor_prompts"] * 2)},
            )
        )
        golden.compare(f"{case}.x_t", torch.cat(noisy))
        passes = 3 if asked["prior_weight"] else 2
        target, *predictions = steps.outputs[:passes]
        golden.compare(f"{case}.first.target", target)
        golden.compare(f"{case}.first.prediction", torch.cat(predictions))
        golden.compare(f"{case}.loss", steps.loss())
        if asked["prior_weight"]:
            golden.compare(f"{case}.prior_loss", torch.stack(steps.ordinary))
        golden.compare(f"{case}.gradient_norm", steps.norm())
        golden.compare_changes(case, before, weights(shapes))
