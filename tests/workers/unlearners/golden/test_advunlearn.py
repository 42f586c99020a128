import copy

import pytest
import torch
from torch.nn import functional

import workers.diffusion.rng
import workers.diffusion.soft_prompt
import workers.diffusion.text
import workers.erasure.adversary
import workers.erasure.negative_guidance
import workers.training.optimise
from tests.workers.unlearners.golden.released import erasure, weights
from workers.diffusion.soft_prompt import new_word, token_ids
from workers.diffusion.text import embed
from workers.unlearners.advunlearn import AdvUnlearn


@pytest.mark.parametrize("phase", ["warm_up", "adversarial"])
def test_a_step_is_the_released_one(shapes, released, monkeypatch, phase):
    with released("advunlearn") as golden:
        asked, seen = golden.settings["train"], {"loss": []}
        method = asked_as(
            golden, warmup_iterations=int(phase == "warm_up"), learning_rate=asked["learning_rate"],
            retain_weight=asked["retain_weight"], negative_guidance=asked["eta"],
            sampler_steps=asked["sampler_steps"], start_guidance=asked["start_guidance"],
        )  # fmt: skip
        stored_draws(monkeypatch, golden, f"{phase}.", seen)
        found = golden.input("attack.pgd.returned").view(1, 1, -1)
        monkeypatch.setattr(workers.erasure.adversary, "attack", lambda *_: found)
        before = moved_and_started(shapes, golden, monkeypatch, method, seen)
        golden.compare(f"{phase}.x_t", seen["x_t"][0])
        golden.compare(f"{phase}.retain_x_t", seen["x_t"][1])
        golden.compare(
            f"{phase}.unlearn_retain_total_loss", torch.stack([*seen["mse"], seen["total"]])
        )
        golden.compare_values(f"{phase}.gradient", seen["gradients"])
        golden.compare_changes(f"{phase}.updated", before, weights(shapes, "text_encoder"))
        assert list(seen["gradients"]) == golden.settings["trained"]


@pytest.mark.parametrize("kind", ["pgd", "fast"])
def test_the_attack_is_the_released_one(shapes, released, monkeypatch, kind):
    with released("advunlearn") as golden:
        asked, seen = golden.settings["attack"], {}
        method = asked_as(
            golden, warmup_iterations=0, retain_weight=0.0, attack=kind,
            attack_steps=asked["steps"], attack_rate=asked["learning_rate"],
            soft_tokens=asked["soft_tokens"],
            sampler_steps=asked["sampler_steps"], start_guidance=asked["start_guidance"],
        )  # fmt: skip
        stored_draws(monkeypatch, golden, "attack.", seen)
        watched(monkeypatch, seen)
        moved_and_started(shapes, golden, monkeypatch, method, seen)
        name = "attack.pgd" if kind == "pgd" else "attack.fast_at"
        golden.compare("attack.x_t", torch.cat(seen["x_t"][1:]))
        golden.compare("attack.concept_prediction", torch.cat(seen["concept"]))
        golden.compare(f"{name}.loss", torch.stack(seen["harm"]))
        golden.compare(f"{name}.gradient_in_optimiser", torch.cat(seen["summed"]))
        golden.compare(f"{name}.returned", seen["returned"])
        golden.compare(f"{name}.after_last_step", seen["last"])


def test_where_the_attack_begins_and_stands(shapes, released, monkeypatch):
    with released("advunlearn") as golden:
        position, ids = golden.settings["attack"]["position"], token_ids(shapes, ["star"], 1)
        # What stands there does not matter: its embedding is replaced.
        ids[0, position] = golden.input("attack.token_ids")[position]
        golden.compare_exactly("attack.token_ids", ids)
        row = torch.tensor([golden.settings["start_token"]])
        monkeypatch.setattr(workers.diffusion.soft_prompt, "integers", lambda *_: row)
        start = new_word(shapes, 1, 1, 0, 0, "prefix")
        golden.compare("attack.start", start * (1 + golden.disturbed))


def asked_as(golden, **chosen):
    return AdvUnlearn(
        AdvUnlearn.Settings(
            variant="released", iterations=1, batch_size=1,
            retain_batch_size=len(golden.settings["retained_prompts"]), **chosen,
        )
    )  # fmt: skip


def moved_and_started(pipe, golden, monkeypatch, method, seen):
    """One iteration with the moved encoder in training and the original's embeddings."""
    original = copy.deepcopy(pipe)
    for name, value in pipe.text_encoder.named_parameters():
        if name.endswith(("mlp.fc2.weight", "self_attn.v_proj.weight")):
            value.data *= 0.3
    before = weights(pipe, "text_encoder")
    monkeypatch.setattr(
        workers.diffusion.text, "embed", lambda _pipe, prompts: embed(original, prompts)
    )

    def from_loss(loss):
        def backward(step):
            with monkeypatch.context() as patch:
                seen["mse"] = []
                kept = functional.mse_loss
                patch.setattr(
                    functional, "mse_loss",
                    lambda *pair: seen["mse"].append(kept(*pair)) or seen["mse"][-1],
                )  # fmt: skip
                value = loss(step)
            value.backward()
            seen["total"] = value.detach()
            seen["gradients"] = {
                name: p.grad.clone()
                for name, p in pipe.text_encoder.named_parameters()
                if p.requires_grad
            }
            return value.detach()

        return backward

    monkeypatch.setattr(workers.training.optimise, "from_loss", from_loss)
    concept, kept = golden.settings["concept"], golden.settings["retained_prompts"]
    method.unlearn(erasure(pipe, concept, [concept], retained_prompts=tuple(kept)))
    return before


def stored_draws(monkeypatch, golden, prefix, seen):
    """x_t of the stored j, t and noise. The attack has four of each, a step one."""
    seen["x_t"] = []

    def turn_of(stream):
        return int(stream.split(" attack ")[1]) if " attack " in stream else 0

    def stored(name, stream):
        return golden.input(f"{prefix}{name}").reshape(-1)[turn_of(stream)]

    def integers(high, count, seed, step, stream, device="cpu"):
        if stream.startswith("denoised steps"):
            return stored("draw", stream)
        if stream.startswith("time step"):
            return stored("t", stream) - 20 * stored("draw", stream)
        return torch.arange(count) % high

    def normal(shape, seed, step, stream, device="cpu"):
        if stream.endswith("retained"):
            name = f"{prefix}retain_noise"
            return golden.input(name if name in golden.tensors else "warm_up.retain_noise")
        turn = turn_of(stream)
        return golden.input(f"{prefix}noise")[turn : turn + 1]

    draw = workers.erasure.negative_guidance.draw

    def drawn(*args, **kwargs):
        latents, timestep = draw(*args, **kwargs)
        seen["x_t"].append(latents)
        return latents, timestep

    monkeypatch.setattr(workers.erasure.negative_guidance, "integers", integers)
    monkeypatch.setattr(workers.erasure.negative_guidance, "normal", normal)
    monkeypatch.setattr(workers.erasure.negative_guidance, "draw", drawn)
    monkeypatch.setattr(workers.diffusion.rng, "integers", integers)
    monkeypatch.setattr(
        workers.diffusion.soft_prompt, "new_word", lambda *_: golden.input("attack.start")[None]
    )


def watched(monkeypatch, seen):
    """Note what the attack computes: losses, what its optimiser sees, and where it ends."""
    seen.update(harm=[], concept=[], summed=[])
    attack, adam = workers.erasure.adversary.attack, torch.optim.Adam

    class Seen(adam):
        def step(self):
            (soft,) = self.param_groups[0]["params"]
            seen["summed"].append(soft.grad.clone().view(1, -1))
            super().step()
            seen["last"] = soft.detach().clone()

    class Adversary(workers.erasure.adversary.Adversary):
        def find(self, pipe, predict, at, ids, start):
            def noted(turn):
                found = at(turn)
                seen["concept"].append(found[2])
                return found

            return super().find(pipe, predict, noted, ids, start)

    def seen_attack(loss, *rest):
        def noted(soft, turn):
            value = loss(soft, turn)
            seen["harm"].append(value.detach())
            return value

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim, "Adam", Seen)
            seen["returned"] = attack(noted, *rest)
        return seen["returned"]

    monkeypatch.setattr(workers.erasure.adversary, "attack", seen_attack)
    monkeypatch.setattr(workers.erasure.adversary, "Adversary", Adversary)
