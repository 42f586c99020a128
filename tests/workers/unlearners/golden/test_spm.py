"""SPM against its released code: layers, anchors, the loss and its updates, the gate, the rate."""

import math

import pytest
import torch

import workers.erasure.negative_guidance
import workers.unlearners.spm
from tests.workers.unlearners.golden.released import Released, erasure
from workers.diffusion.denoise import ddim, guided
from workers.diffusion.text import embed
from workers.editing.adapters import GatedLora
from workers.unlearners.spm import SPM, counted, released_stops


def given(golden, pipe, scale=1.0, variant="released", is_gated=False):
    """The file's adapters."""
    flat, values = golden.input("factors"), {}
    layers = dict(pipe.unet.named_modules())
    for path in golden.settings["factor_order"]:
        outputs, *inputs = layers[path].weight.shape
        for name, shape in (("down", (1, *inputs)), ("up", (outputs, 1, *[1] * len(inputs[1:])))):
            taken, flat = flat[: math.prod(shape)], flat[math.prod(shape) :]
            values[f"{path}.{name}"] = taken.view(shape).clone()
    assert not len(flat)
    return GatedLora(values, golden.settings["concept"], scale, variant, is_gated)


def test_down_begins_within_one_over_the_root_of_the_fan_in(bundled):
    """Only facts: the bound and deviation of what the released code draws."""
    golden = Released("spm")
    order = golden.settings["factor_order"]
    made = GatedLora.new(bundled.unet, "star", 1, 1.0, 0).tensors()
    assert made.keys() == {f"{path}.{part}" for path in order for part in ("down", "up")}
    downs = [made[f"{path}.down"] for path in order]
    assert [d.numel() for d in downs] == golden.expected("init.fan_in").tolist()
    shares = [d.flatten() / b for d, b in zip(downs, golden.expected("init.bound"), strict=True)]
    drawn = torch.cat(shares)
    assert 0.99 < drawn.abs().max() <= 1
    assert drawn.std() == pytest.approx(3**-0.5, rel=0.02)
    released = float(golden.expected("init.drawn_std_times_sqrt_fan_in"))
    assert drawn.std() == pytest.approx(released, rel=0.03)
    expected = golden.expected("init.std")
    deviations = torch.stack([d.std() for d in downs if d.numel() > 200])
    wide = expected[golden.expected("init.fan_in") > 200]
    torch.testing.assert_close(deviations.double(), wide, rtol=0.15, atol=0)
    ups = torch.cat([made[f"{path}.up"].flatten() for path in order])
    assert ups.abs().max() == golden.expected("init.up_abs_max") == 0


def test_the_layers(shapes, released):
    with released("spm") as golden:
        layers = dict(shapes.unet.named_modules())
        block = "down_blocks.0.attentions.0"
        for kind, path, outputs in (
            ("linear", f"{block}.transformer_blocks.0.attn2.to_k", None),
            ("conv", f"{block}.proj_in", 8),
        ):
            values = {f"{path}.{n}": golden.input(f"layer.{kind}.{n}") for n in ("down", "up")}
            lora = GatedLora(
                values, "star", golden.settings["layer_multiplier"], "released", is_gated=False
            )
            with lora.on(shapes), torch.no_grad():
                y = layers[path](golden.input(f"layer.{kind}.x"))
            golden.compare(f"layer.{kind}.y", y[:, :outputs])


CASES = {
    "update": {},
    "update_without_decay": {"weight_decay": 0.0},
    "update_one_anchor": {"weight_decay": 0.0, "anchors": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_three_steps(shapes, released, monkeypatch, case):
    with released("spm") as golden:
        asked = golden.settings
        x_t, t = golden.input("loss.x_t"), golden.input("loss.t").tolist()
        one = "_one" if case == "update_one_anchor" else ""
        anchors = golden.input(f"loss{one}.anchors")
        # Three cycles in three steps: the rate is at its top in each.
        settings = {
            "variant": "released", "iterations": asked["iterations"], "batch_size": 1,
            "learning_rate": asked["learning_rate"], "weight_decay": asked["weight_decay"],
            "warmup_steps": 0, "cycles": 3, "negative_guidance": asked["eta"], "anchors": 4,
            "anchor_weight": asked["anchor_weight"],
        } | CASES[case]  # fmt: skip
        membrane = given(golden, shapes)
        before = membrane.tensors()
        seen, losses, gradients = [], [], []

        def spied(*args):
            erased, kept = terms(*args)
            total = erased + asked["anchor_weight"] * kept
            losses.append(torch.stack([total, erased, kept]).detach())
            if len(losses) == 1:
                found = torch.autograd.grad(
                    total, list(membrane.values.values()), retain_graph=True
                )
                gradients.extend(g.norm() for g in found)
            return erased, kept

        terms = workers.unlearners.spm.terms
        core = workers.erasure.negative_guidance
        monkeypatch.setattr(GatedLora, "new", lambda *_: membrane)
        monkeypatch.setattr(core, "draw", lambda *a, **_: (x_t[a[5]][None], t[a[5]]))
        monkeypatch.setattr(workers.unlearners.spm, "terms", spied)
        monkeypatch.setattr(
            workers.unlearners.spm, "latent_anchors", lambda *a: anchors[a[3]][None]
        )
        shapes.unet.register_forward_hook(
            lambda _m, _a, out: (
                seen.append(out.sample.detach()) if torch.is_grad_enabled() else None
            )
        )
        made = SPM(SPM.Settings(**settings)).unlearn(erasure(shapes, "star", ["star"]))
        golden.compare_changes(case, before, made.edits[0].tensors())
        golden.compare(f"{case}.loss_erase_anchoring", torch.stack(losses))
        if case == "update":
            golden.compare("loss.first_gradient_norm", torch.stack(gradients))
            golden.compare("loss.first_prediction_target", seen[0])
            golden.compare("loss.first_prediction_anchors", seen[1])
            which = torch.tensor(counted(4, "released"))
            golden.compare_exactly("loss.anchors_that_count", which)


def test_the_gate_acts_squared_in_both_halves_of_guidance(shapes, released):
    with released("spm") as golden:
        edit = given(golden, shapes, is_gated=True)
        prompts = golden.settings["gate_prompts"]
        x_t, values = golden.input("gate.x_t"), []
        with edit.on(shapes), torch.no_grad():
            gates = gates_of(shapes)
            text, empty = embed(shapes, prompts), embed(shapes, [""])
            golden.compare("gate.value", gates.gates(text))
            shapes.unet.register_forward_hook(lambda _m, _a, out: values.append(out.sample))
            predict = guided(shapes.unet, text, empty.expand_as(text), 7.5)
            predict(x_t.expand(len(prompts), -1, -1, -1), golden.settings["gate_timestep"])
            # Ours has the prompts' half first.
            asked, away = values[0].chunk(2)
        golden.compare("gate.prediction", torch.stack([away, asked], dim=1))


def gates_of(pipe):
    """The gates that an applied edit uses, from its hook before the UNet."""
    (hook,) = pipe.unet._forward_pre_hooks.values()
    return next(
        cell.cell_contents for cell in hook.__closure__ if hasattr(cell.cell_contents, "gates")
    )


def test_the_time_steps(shapes):
    golden = Released("spm")
    stops = released_stops(1000)(ddim(shapes, 30).timesteps.tolist(), 33)
    for name, found in (
        ("time.k", [len(stop.walked) for stop in stops]),
        ("time.level_of_x_t", [stop.walked[-1] - 33 for stop in stops]),
        ("time.t_of_loss", [list(stop.evaluated) for stop in stops]),
    ):
        golden.compare_exactly(name, torch.tensor(found))
    golden.check()


def test_the_rate():
    golden = Released("spm")
    asked = golden.settings
    counts = {"iterations": asked["steps"], **{n: asked[n] for n in ("warmup_steps", "cycles")}}
    method = SPM(SPM.Settings(**counts))
    rates = [method.rate(step) for step in golden.input("rate.step").tolist()]
    golden.compare("rate.factor", torch.tensor(rates, dtype=torch.float64))
    golden.check()
