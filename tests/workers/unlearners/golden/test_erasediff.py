import pytest
import torch

from tests.workers.unlearners.golden.released import erasure, weights
from tests.workers.unlearners.steps import draw, pictures, watch
from workers.unlearners.erasediff import EraseDiff

CASES = ["small", "large"]


def unlearn(pipe, golden, case, passes):
    s = golden.settings
    settings = EraseDiff.Settings(
        variant="released",
        weight=s["weights"][case],
        batch_size=s["batch_size"],
        learning_rate=s["learning_rate"],
        iterations=s["steps_a_pass"],
        epoch_steps=s["steps_a_pass"],
        inner_passes=passes,
    )
    materials = {
        "forget": pictures(golden.input("forget_latents"), s["forget_prompt"]),
        "retain": pictures(golden.input("retain_latents"), s["retain_prompt"]),
    }
    EraseDiff(settings).unlearn(
        erasure(
            pipe,
            s["concept"],
            [s["forget_prompt"]],
            anchor_prompts=[s["anchor_prompt"]],
            materials=materials,
        )
    )


def stored(golden, name, step):
    """A batch: always the same pictures, with the noise and time steps of a step of a pass."""
    given = {n: golden.input(f"{name}{n}")[step] for n in ("t", "noise")}
    return given | {"rows": torch.arange(golden.settings["batch_size"])}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_run(shapes, released, monkeypatch, case):
    with released("erasediff") as golden:
        before, steps = weights(shapes), watch(monkeypatch)
        a_pass, passes = golden.settings["steps_a_pass"], golden.settings["inner_passes"]

        def drawn(step, stream):
            half, index = divmod(step, a_pass)
            turn, is_outer = divmod(half, 2)
            assert is_outer == (stream != "inner")
            kind = f"outer{turn}.{stream}_" if is_outer else f"inner{turn}."
            return stored(golden, kind, index)

        draw(monkeypatch, drawn)
        unlearn(shapes, golden, case, passes)
        halves = steps.loss().view(passes, 2, a_pass)
        golden.compare(f"{case}.reported_loss", halves[:, 1])
        golden.compare_values(f"{case}.first_outer_gradient", steps.gradients[a_pass])
        # Of the relabelling losses the first `a_pass` are of inner steps.
        first = torch.stack([steps.ordinary[0], steps.relabelling[a_pass]])
        golden.compare(f"{case}.first_outer_retain_forget_loss", first)
        golden.compare_changes(f"{case}.official", before, weights(shapes))


@pytest.mark.parametrize("case", CASES)
def test_outer_steps_alone(shapes, released, monkeypatch, case):
    with released("erasediff") as golden:
        before, steps = weights(shapes), watch(monkeypatch)
        draw(monkeypatch, lambda step, stream: stored(golden, f"outer1.{stream}_", step))
        unlearn(shapes, golden, case, 0)
        losses = torch.stack([torch.stack(steps.ordinary), torch.stack(steps.relabelling)], dim=1)
        golden.compare(f"{case}.empty_state.retain_forget_loss", losses)
        golden.compare_changes(f"{case}.empty_state", before, weights(shapes))
