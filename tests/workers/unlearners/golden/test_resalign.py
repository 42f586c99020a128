import torch

import workers.training.optimise
import workers.unlearners.resalign as resalign
from tests.workers.unlearners.golden.released import Released, erasure
from workers.erasure.materials import Pictures
from workers.erasure.relabel import NoisyPictures, PictureSet
from workers.unlearners.resalign import ResAlign, hypergradient, scheduled


def test_the_hypergradient_of_a_quadratic(released, double_precision):
    with released("resalign") as golden:
        matrix, c, h, p = (golden.input(f"quadratic.{name}") for name in ("H", "c", "h", "p"))
        at = [p.requires_grad_(True)]

        def inner(parts):
            return 0.5 * (parts[0].mT @ matrix @ parts[0]).sum()

        for terms in (1, 3, 5):
            (found,) = hypergradient([c], [h / 2], inner, at, terms, 1e9)
            golden.compare(f"quadratic.hypergradient.K{terms}", found)
        (found,) = hypergradient([c], [h / 2], inner, at, 3000, 1e9)
        golden.compare("quadratic.exact", found)
        limit = float(golden.expected("quadratic.limited.max_norm"))
        steps = []

        def counted(*args):
            steps.append(args[-1])
            return series(*args)

        series, resalign._series = resalign._series, counted
        try:
            (found,) = hypergradient([c], [h / 2], inner, at, 5, limit)
        finally:
            resalign._series = series
        golden.compare("quadratic.limited.hypergradient", found)
        golden.compare_exactly("quadratic.limited.retries", torch.tensor(len(steps) - 1))


def test_the_outer_loss_and_its_hypergradient(shapes, released, monkeypatch):
    with released("resalign") as golden:
        for terms in (1, 5):
            seen = outer(shapes, golden, monkeypatch, terms)
            compare(golden, f"hypergradient.K{terms}.", seen["gradients"])
            golden.compare(f"hypergradient.K{terms}.first", seen["gradients"][0])
        golden.compare("outer.diffusion_loss_theta_theta_star", torch.stack(seen["gone"]))
        golden.compare("outer.retain_loss", seen["kept"])
        golden.compare("outer.total", seen["total"])
        compare(golden, "outer.gradient_theta_", seen["direct"])
        norms = torch.stack([slope.norm() for slope in seen["slope"]])
        golden.compare("outer.gradient_theta_star_norm", norms)


def compare(golden, prefix, gradients):
    """Norms and probes by factor."""
    flat = [value.flatten() for value in gradients]
    golden.compare(f"{prefix}norm", torch.stack([value.norm() for value in flat]))
    probes = [value @ torch.arange(len(value)).double().cos() for value in flat]
    golden.compare(f"{prefix}probe", torch.stack(probes))


def outer(pipe, golden, monkeypatch, terms):
    """What the method computes in its first step, at the stored factors and batches."""
    asked, seen = golden.settings, {"gone": []}
    method = ResAlign(
        ResAlign.Settings(
            rank=asked["rank"], resilience_weight=asked["resilience_weight"],
            retain_weight=asked["retain_weight"], final_retain_weight=asked["retain_weight"],
            batch_size=1, retain_batch_size=2, simulated_on="forget", simulations=1,
            fixed_point_steps=terms, hypergradient_limit=1e9, iterations=160,
        )
    )  # fmt: skip
    prompts = [asked["outer_prompt"], asked["inner_prompt"]]
    pictures = torch.cat([golden.input("outer.latents"), golden.input("inner.latents")])
    materials = {
        "forget": Pictures(pictures, torch.empty(0), prompts),
        "retain": Pictures(golden.input("retain.latents"), torch.empty(0), asked["retain_prompts"]),
    }

    def noisy(pictures, rows, noise, t):
        rows, noise, t = torch.tensor(rows), golden.input(noise), golden.input(t)
        x_t = pictures.scheduler.add_noise(pictures.latents[rows], noise, t)
        return NoisyPictures(x_t, noise, t, rows)

    def batch(self, count, seed, step, stream):
        if stream == "retain":
            return noisy(self, [0, 1], "retain.noise", "retain.t")
        if stream == "forget":
            return noisy(self, [0], "outer.noise_theta", "outer.t")
        return noisy(self, [1], "inner.noise", "inner.t")

    def noised_again(self, batch, seed, step, stream):
        return noisy(self, [0], "outer.noise_theta_star", "outer.t")

    def minimise(erasure, settings, parameters, backward, **details):
        put(parameters, golden.input("factors.theta"))
        seen["total"] = backward(0)
        seen["gradients"] = [parameters[name].grad for name in golden.names("factors")]
        return 0.0

    def simulate(losses, theta, *_):
        reached = [torch.empty_like(value).requires_grad_(True) for value in theta]
        put(
            dict(zip(losses.space.parameters, reached, strict=True)),
            golden.input("factors.theta_star"),
        )
        return reached

    def put(parameters, values):
        sizes = [parameters[name].numel() for name in golden.names("factors")]
        for name, part in zip(golden.names("factors"), values.split(sizes), strict=True):
            parameters[name].data.copy_(part.view_as(parameters[name]))

    def noted(slope, direct, inner, reached, *rest):
        seen.update(slope=slope, direct=direct)
        return hypergradient(slope, direct, inner, reached, *rest)

    def forget(self, *args):
        seen["gone"].append(kept_forget(self, *args))
        return seen["gone"][-1]

    def retain(self, *args):
        seen["kept"] = kept_retain(self, *args)
        return seen["kept"]

    with monkeypatch.context() as patch:
        kept_forget, kept_retain = resalign.Losses.forget, resalign.Losses.retain
        patch.setattr(resalign.Losses, "forget", forget)
        patch.setattr(resalign.Losses, "retain", retain)
        patch.setattr(PictureSet, "batch", batch)
        patch.setattr(PictureSet, "noised_again", noised_again)
        patch.setattr(workers.training.optimise, "minimise", minimise)
        patch.setattr(resalign, "simulate", simulate)
        patch.setattr(resalign, "hypergradient", noted)
        method.unlearn(erasure(pipe, asked["concept"], prompts, materials=materials))
    return seen


def test_the_weights_over_time(released):
    with released("resalign") as golden:
        asked = golden.settings["schedule"]
        pairs = [(asked[n], asked[f"final_{n}"]) for n in ("resilience", "retain")]
        found = [
            [scheduled(epoch - 1, asked["epochs"], *pair) for pair in pairs]
            for epoch in golden.input("weights.epoch").tolist()
        ]
        golden.compare("weights.resilience_retain", torch.tensor(found, dtype=torch.float64))


def test_the_first_factors_are_distributed_as_released(shapes):
    asked = Released("resalign").settings["init"]
    space = resalign.LoraSpace(
        erasure(shapes, "star", ["a star"]), ResAlign.Settings(rank=asked["rank"])
    )
    for part in ("down", "up"):
        chosen = [v.flatten() for n, v in space.parameters.items() if n.endswith(f".{part}")]
        values, deviation = torch.cat(chosen), asked[f"{part}_std"]
        assert abs(values.std() / deviation - 1) < 0.03
        assert abs(values.mean()) < 0.05 * deviation
