import copy

import pytest
import torch

import workers.training.optimise
from tests.workers.unlearners.golden.released import Released, erasure, weights
from workers.diffusion.attention import recorded
from workers.diffusion.text import embed, end_tokens, subject_words
from workers.erasure.materials import Pictures
from workers.unlearners import mace
from workers.unlearners.mace import MACE, beginning, muted_norms, outside, timestep_weights

WITHIN = {"no_lambda": 1e-4}
FUSED_WITHIN = 1e-4
"""REFERENCE.md's: part 3's system is conditioned badly."""


def released_mace(**chosen):
    return MACE(MACE.Settings(variant="released", batch_size=1, **chosen))


@pytest.mark.parametrize("case", ["both", "no_lambda", "no_prior", "uneven"])
def test_both_closed_forms(shapes, released, monkeypatch, case):
    with released("mace") as golden:
        asked = golden.settings["cases"][case]
        before, refined = weights(shapes), {}
        down, up = golden.input("lora.down"), golden.input("lora.up")
        names = [name.removesuffix(".weight") for name in golden.names("lora")]
        ups = up.split([before[f"{name}.weight"].shape[0] for name in names])
        factors = dict(zip(names, zip(down, ups, strict=True), strict=True))

        def trained(erasure, **_):
            refined.update(weights(shapes))
            return factors, 0.0

        method = released_mace(lam=asked["lam"], prior_scale=asked["prior_scale"])
        monkeypatch.setattr(method, "_mute", trained)
        captions = embed(shapes, asked["captions"]).flatten(0, 1)
        method.unlearn(
            erasure(
                shapes,
                asked["concept"],
                asked["prompts"],
                anchor_prompts=tuple(asked["mapping_prompts"]),
                materials={"general": captions.T @ captions},
            )
        )
        golden.compare_changes(f"{case}.refined", before, refined, WITHIN.get(case, 1e-6))
        golden.compare_changes(f"{case}.fused", refined, weights(shapes), FUSED_WITHIN)


@pytest.mark.parametrize(("name", "case"), [("even", "both"), ("uneven", "uneven")])
def test_which_tokens_are_around_the_concept(bundled, name, case):
    golden = Released("mace")
    asked = golden.settings["cases"][case]
    pairs = zip(asked["prompts"], asked["mapping_prompts"], strict=True)
    for index, pair in enumerate(pairs):
        golden.compare_exactly(f"tokens.{name}.{index}", outside(bundled.tokenizer, *pair))
    golden.check()


def muted(pipe, prompt, case):
    words = subject_words(pipe, [prompt], "star")
    return words | end_tokens(pipe, [prompt]) if case == "words_and_end" else words


@pytest.mark.parametrize("case", ["words", "words_and_end"])
def test_the_attention_that_is_muted(shapes, released, case):
    with released("mace") as golden:
        asked, at = golden.settings["lora"], f"loss.{case}"
        words = muted(shapes, asked["prompt"], case)
        positions = asked["word_positions"]
        if case == "words_and_end":
            positions = positions + asked["end_positions"]
        assert words[0].nonzero().flatten().tolist() == positions
        x_t, t = golden.input("loss.x_t")[:1], golden.input("loss.t")[:1]
        with recorded(shapes.unet) as maps, torch.no_grad():
            shapes.unet(x_t, t, encoder_hidden_states=embed(shapes, [asked["prompt"]]))
        by_layer = {name: maps[name] for name in golden.names("loss")}
        norms = muted_norms(by_layer, words, golden.input("loss.mask").bool())[:, 0]
        golden.compare(f"{at}.each_layer", norms)
        golden.compare(at, norms.sum())
        golden.compare(f"{at}.squared", norms.square().sum())


@pytest.mark.parametrize("case", ["words", "words_and_end"])
def test_three_updates_of_the_lora(shapes, released, monkeypatch, case):
    with released("mace") as golden:
        asked, at = golden.settings["lora"], f"lora_update.{case}"
        names = [name.removesuffix(".weight") for name in golden.names("lora")]
        down = dict(zip(names, golden.input("lora.down"), strict=True))
        begun = beginning(shapes, asked["rank"], 0) | {f"{n}.down": v for n, v in down.items()}
        x_t, t = golden.input("loss.x_t"), golden.input("loss.t")
        seen = watch(monkeypatch)
        monkeypatch.setattr(mace, "beginning", lambda *_: copy.deepcopy(begun))
        method = released_mace(
            end_tokens=case == "words_and_end",
            **{n: asked[n] for n in ("iterations", "learning_rate", "rank")},
        )
        rows = torch.zeros(1, dtype=torch.long)
        monkeypatch.setattr(
            method, "_noised", lambda _, step: (rows, x_t[step : step + 1], t[step : step + 1])
        )
        pictures = Pictures(x_t[:1], torch.zeros(1), [asked["prompt"]])
        materials = {"pictures": pictures, "masks": golden.input("loss.mask").bool()}
        factors, _ = method._mute(erasure(shapes, "star", (), materials=materials))
        golden.compare(f"{at}.loss", torch.stack(seen["loss"]))
        golden.compare(f"{at}.gradient_norm", torch.stack(seen["norm"]))
        after = {f"{n}.weight.down": pair[0] for n, pair in factors.items()}
        after |= {f"{n}.weight.up": pair[1] for n, pair in factors.items()}
        golden.compare_changes(at, as_named(begun), after)


def as_named(begun):
    """As the file names the factors."""
    named = {}
    for name, value in begun.items():
        path, _, part = name.rpartition(".")
        named[f"{path}.weight.{part}"] = value
    return named


def watch(monkeypatch):
    """The loss and the gradients' norm of every step, before they are clipped."""
    seen = {"loss": [], "norm": []}
    phase_of = workers.training.optimise.Phase

    def phase(*, backward, parameters, **rest):
        def watched(step):
            loss = backward(step)
            # The last layers' values reach no attention.
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            seen["loss"].append(loss)
            seen["norm"].append(torch.cat([g.flatten() for g in gradients]).norm())
            return loss

        return phase_of(backward=watched, parameters=parameters, **rest)

    monkeypatch.setattr(workers.training.optimise, "Phase", phase)
    return seen


def test_how_the_lora_begins(bundled):
    golden = Released("mace")
    ranks = golden.expected("lora_init.rank").tolist()
    for rank, std in zip(ranks, golden.expected("lora_init.down_std").tolist(), strict=True):
        begun = beginning(bundled, rank, 0)
        down = torch.cat([v.flatten() for n, v in begun.items() if n.endswith(".down")])
        up = torch.cat([v.flatten() for n, v in begun.items() if n.endswith(".up")])
        # Of n normal numbers the deviation is known to 1/√(2n): these are four such.
        assert float(down.std()) == pytest.approx(std, rel=4 / (2 * len(down)) ** 0.5)
        assert float(up.abs().max()) == golden.expected("lora_init.up_abs_max").item()


def test_the_timesteps_probabilities():
    golden = Released("mace")
    weights = timestep_weights("late", 1000)
    golden.compare("timesteps.probability", weights[golden.input("timesteps.at")])
    golden.check()
