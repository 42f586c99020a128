import sys

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from pydantic import ValidationError

from orchestrator.core.errors import ResurgeError
from workers.diffusion.latents import encode_images
from workers.diffusion.lora import Lora
from workers.diffusion.text import embed
from workers.interfaces.dataset import Examples
from workers.recipes import FinetuneSettings
from workers.runtime.parts import in_parts
from workers.training.checkpoints import load_tensors, save_tensors
from workers.training.finetune import Trainer, ema_decay_at, learning_rate_at

RECIPES = {
    "full": {},
    "lora": {"adapter": "lora"},
    "everything": {
        "ema_decay": 0.9, "schedule": "cosine", "warmup_steps": 2, "steps": 8, "accumulation": 2,
        "caption_dropout": 0.5, "clip_norm": 0.1,
    },
    "lora with everything": {
        "adapter": "lora", "ema_decay": 0.9, "schedule": "linear", "warmup_steps": 2, "steps": 8,
        "accumulation": 2, "lora_targets": "cross_attention",
    },
    "bf16": {"precision": "bf16"},
    "pictures at random": {"random_flip": True, "random_crop": 0.75, "snr_gamma": 5.0},
    "dora": {"adapter": "dora", "ema_decay": 0.9},
    "text encoder": {"train_text_encoder": True, "caption_dropout": 0.5},
    "text encoder's lora": {"train_text_encoder": True, "adapter": "lora", "accumulation": 2},
    "sgd": {"optimizer": "sgd"},
    "adafactor": {"optimizer": "adafactor", "adapter": "lora"},
    "schedule-free": {"optimizer": "schedule_free", "warmup_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
}  # fmt: skip


def recipe(**values):
    return FinetuneSettings(**({"learning_rate": 1e-2, "batch_size": 4} | values))


def need(settings):
    """Skip where an optional package is not installed."""
    if settings.optimizer == "schedule_free":
        pytest.importorskip("schedulefree")


def straight(warm, examples, settings, steps, seed=0):
    """The weights after training `steps` steps from the base in one go."""
    warm.reset()
    trainer = Trainer(warm.pipe, settings, examples, seed)
    trainer.train_to(steps)
    trainer.finish()
    return warm.changed()


def assert_same(a, b):
    assert a.keys() == b.keys() and a
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_equals_straight_through_bit_for_bit(warm, examples, tmp_path, name):
    settings = recipe(**RECIPES[name])
    need(settings)
    expected = straight(warm, examples, settings, 8)

    warm.reset()
    first = Trainer(warm.pipe, settings, examples, 0)
    first.train_to(3)
    with first.evaluation():  # as a trajectory does at every step count
        pass
    tensors, meta = first.state()
    save_tensors(tmp_path / "state.safetensors", tensors)
    warm.reset()
    second = Trainer(warm.pipe, settings, examples, 0)
    second.load_state(load_tensors(tmp_path / "state.safetensors"), meta)
    second.train_to(8)
    second.finish()

    assert [step for step, _ in second.losses] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same(warm.changed(), expected)


def test_a_trainer_does_not_notice_those_before_it(warm, examples):
    settings = recipe(adapter="lora")
    expected = straight(warm, examples, settings, 2)
    straight(warm, examples, recipe(precision="bf16"), 2, seed=5)
    torch.manual_seed(123)
    assert_same(straight(warm, examples, settings, 2), expected)


def test_the_seed_changes_the_result(warm, examples):
    a = straight(warm, examples, recipe(), 2, seed=0)
    b = straight(warm, examples, recipe(), 2, seed=1)
    assert not all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "name",
    [
        *("full", "lora", "everything", "lora with everything", "schedule-free", "dora"),
        *("text encoder", "text encoder's lora"),
    ],
)
def test_evaluation_shows_what_finish_would_leave(warm, examples, name):
    need(recipe(**RECIPES[name]))
    trainer = Trainer(warm.pipe, recipe(**RECIPES[name]), examples, 0)
    trainer.train_to(3)
    with trainer.evaluation():
        seen = warm.changed()
    trainer.finish()
    assert_same(warm.changed(), seen)


def test_finish_leaves_a_plain_pipeline(warm, examples):
    names = [name for name, _ in warm.pipe.unet.named_modules()]
    straight(warm, examples, recipe(adapter="lora"), 1)
    unet = warm.pipe.unet
    assert [name for name, _ in unet.named_modules()] == names
    assert not unet.training
    assert not any(p.requires_grad or p.grad is not None for p in unet.parameters())
    straight(warm, examples, recipe(adapter="lora"), 1)  # an adapter can be added again


def test_lora_changes_only_the_projections_it_targets(warm, examples):
    changed = straight(warm, examples, recipe(adapter="lora", lora_targets="cross_attention"), 2)
    assert changed
    assert all(".attn2.to_" in name for name in changed)


@pytest.mark.parametrize("adapter", ["lora", "dora"])
def test_lora_begins_as_the_identity(warm, examples, adapter):
    changed = straight(warm, examples, recipe(adapter=adapter, train_text_encoder=True), 0)
    for name, value in changed.items():  # a length over itself may be rounded
        torch.testing.assert_close(value, warm.base_state()[name], rtol=1e-6, atol=1e-7)
    assert adapter == "dora" or not changed


def test_dora_merged_is_what_peft_computes(warm, examples):
    warm.reset()
    trainer = Trainer(warm.pipe, recipe(adapter="dora"), examples, 0)
    trainer.train_to(3)
    batch = trainer._noised(3, 0)

    def predicted():
        with torch.no_grad():
            pipe = warm.pipe
            return pipe.unet(batch.noisy, batch.timesteps, encoder_hidden_states=batch.text).sample

    beside = predicted()
    with trainer.evaluation():
        torch.testing.assert_close(predicted(), beside, rtol=1e-4, atol=1e-5)
    lengths = [n for n in trainer._training.parameters if "magnitude" in n]
    assert lengths and all(".attn" in name for name in lengths)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_text_encoder_that_is_trained_learns_too(warm, examples, adapter):
    settings = recipe(adapter=adapter, train_text_encoder=True)
    changed = straight(warm, examples, settings, 2)
    assert {name.partition(".")[0] for name in changed} == {"unet", "text_encoder"}
    if adapter == "lora":
        assert all(".self_attn." in name for name in changed if name.startswith("text_encoder."))
    alone = straight(warm, examples, recipe(adapter=adapter), 2)
    unet = [name for name in alone if not torch.equal(alone[name], changed[name])]
    assert unet  # its second step has seen other embeddings


def test_the_first_loss_is_the_same_whether_captions_are_embedded_before_or_in_training(
    warm, examples
):
    losses = []
    for settings in (recipe(), recipe(train_text_encoder=True)):
        warm.reset()
        trainer = Trainer(warm.pipe, settings, examples, 0)
        trainer.train_to(1)
        losses.append(trainer.losses[0][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bf16_keeps_fp32_weights(warm, examples):
    changed = straight(warm, examples, recipe(precision="bf16"), 1)
    assert {value.dtype for value in changed.values()} == {torch.float32}


def test_text_and_autoencoder_are_not_trained(warm, examples):
    vae = {name: value.clone() for name, value in warm.pipe.vae.state_dict().items()}
    changed = straight(warm, examples, recipe(), 1)
    assert all(name.startswith("unet.") for name in changed)
    assert_same(warm.pipe.vae.state_dict(), vae)


def test_all_captions_dropped_equals_empty_captions(warm, examples):
    silent = Examples(examples.images, ("",) * len(examples.captions))
    dropped = straight(warm, examples, recipe(caption_dropout=1.0), 2)
    expected = straight(warm, silent, recipe(), 2)
    for name in expected:
        torch.testing.assert_close(dropped[name], expected[name], atol=1e-4, rtol=1e-3)


def test_every_example_once_an_epoch(warm, examples):
    trainer = Trainer(warm.pipe, recipe(batch_size=4), examples, 0)
    seen = []
    for step in range(3):
        seen += [latents.sum().item() for latents in trainer._batch(step, 0)[0]]
    assert sorted(seen) == sorted(latents.sum().item() for latents in trainer._pictures.plain)


def test_the_loss_falls(warm, examples):
    trainer = Trainer(warm.pipe, recipe(), examples, 0)
    trainer.train_to(60)
    losses = [loss for _, loss in trainer.losses]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_a_v_prediction_model_trains_towards_v(warm, examples):
    as_noise = straight(warm, examples, recipe(), 1)
    config = warm.pipe.scheduler.config
    warm.pipe.scheduler = DDIMScheduler.from_config(config, prediction_type="v_prediction")
    as_v = straight(warm, examples, recipe(), 1)
    assert not all(torch.equal(as_noise[name], as_v[name]) for name in as_noise)


def test_the_moving_average_warms_up_as_diffusers_does(warm, examples):
    """Step by step EMAModel's own numbers; 20 steps at 0.9999 are mostly what was trained."""
    settings, average = recipe(ema_decay=0.9999, learning_rate=1e-3), None
    warm.reset()
    trainer = Trainer(warm.pipe, settings, examples, 0)
    weight = warm.pipe.unet.conv_in.weight
    before = weight.detach().clone()
    average = EMAModel([weight], decay=0.9999)
    for step in range(20):
        trainer.train_to(step + 1)
        average.step([weight])
        assert ema_decay_at(step, 0.9999) == average.cur_decay_value
    raw = weight.detach().clone()
    with trainer.evaluation():
        torch.testing.assert_close(weight.detach(), average.shadow_params[0], rtol=0, atol=1e-6)
        moved = (weight.detach() - before).norm() / (raw - before).norm()
    assert 0.5 < moved < 1.1


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_loras_alpha_is_the_rank_unless_it_is_said(warm, rank):
    settings = recipe(adapter="lora", lora_rank=rank)
    written = recipe(adapter="lora", lora_rank=rank, lora_alpha=rank)
    assert settings.identity() == written.identity()
    assert settings.full() == written.full()
    assert settings.full()["lora_alpha"] == rank
    other = recipe(adapter="lora", lora_rank=rank, lora_alpha=rank + 1)
    assert other.identity() != settings.identity()
    for chosen, scale in ((settings, 1), (other, (rank + 1) / rank)):
        warm.reset()
        lora = Lora(warm.pipe.unet, chosen, 0)
        layers = [m for m in warm.pipe.unet.modules() if hasattr(m, "scaling")]
        assert {value for m in layers for value in m.scaling.values()} == {scale}
        lora.finish()


def test_a_loss_that_is_not_finite_names_its_step(warm, examples):
    trainer = Trainer(warm.pipe, recipe(), examples, 0)
    trainer.train_to(2)
    with torch.no_grad():
        warm.pipe.unet.conv_in.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 3"):
        trainer.train_to(5)


def test_progress_is_told_steps_and_loss(warm, examples):
    calls = []
    Trainer(warm.pipe, recipe(), examples, 0).train_to(12, lambda *call: calls.append(call))
    assert [(done, total) for done, total, _ in calls] == [(10, 12), (12, 12)]
    assert all(numbers["loss"] > 0 for *_, numbers in calls)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", {0: 0.5, 1: 1.0, 2: 1.0, 9: 1.0}),
        ("linear", {0: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
        ("cosine", {0: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
    ],
)
def test_schedules(schedule, rates):
    settings = recipe(learning_rate=1.0, schedule=schedule, warmup_steps=2, steps=10)
    assert {step: pytest.approx(learning_rate_at(step, settings)) for step in rates} == rates


def test_a_missing_package_is_named(warm, examples, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ResurgeError, match="needs the package bitsandbytes"):
        Trainer(warm.pipe, recipe(optimizer="adamw8bit"), examples, 0)


@pytest.mark.parametrize(
    "settings", [{"schedule": "cosine", "steps": 9}, {"ema_decay": 0.9}], ids=["schedule", "ema"]
)
def test_schedule_free_stands_alone(settings):
    with pytest.raises(ValidationError, match="schedule_free"):
        recipe(optimizer="schedule_free", **settings)


def test_settings_of_what_is_not_used_do_not_count():
    assert recipe(momentum=0.5).identity() == recipe().identity()
    assert recipe(optimizer="sgd", beta1=0.1).identity() == recipe(optimizer="sgd").identity()
    assert recipe(optimizer="sgd", momentum=0.5).identity() != recipe(optimizer="sgd").identity()


@pytest.fixture
def prior(warm, examples):
    """Latents that stand for pictures of the class."""
    return encode_images(warm.pipe, examples)[:3] * 0.5


BOOTH = {"caption": "a sks shape", "prior_weight": 0.5, "prior_prompt": "a shape"}


@pytest.mark.parametrize("count", [1, 2])
def test_a_prior_s_loss_is_added_to_the_pictures_own(warm, examples, prior, count):
    """E ‖ε - ε_θ(z_t, c)‖² + λ E ‖ε' - ε_θ(z'_t', c_pr)‖² (Ruiz et al., the loss and its gradient),
    whether a batch is computed at once or in parts.
    """
    trainer = Trainer(warm.pipe, recipe(**BOOTH), examples, 0, prior)
    batch = trainer._noised(0, 0)
    assert len(batch.noisy) == 8
    text = embed(warm.pipe, ["a sks shape", "a shape"])
    scheduler = DDIMScheduler.from_config(warm.pipe.scheduler.config)
    losses = []
    for half, caption in ((slice(0, 4), text[:1]), (slice(4, 8), text[1:])):
        asked = {"encoder_hidden_states": caption.expand(4, -1, -1)}
        found = warm.pipe.unet(batch.noisy[half], batch.timesteps[half], **asked).sample
        losses.append((found - batch.target[half]).square().mean())
    expected = losses[0] + 0.5 * losses[1]
    parameters = trainer._training.parameters
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    with in_parts(count):
        loss = trainer._backward(0)
    torch.testing.assert_close(loss, expected.detach())
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=1e-6, msg=name)
    # What was noised are the class's latents: the noise is what the model is to predict.
    drawn = batch.noisy[4:]
    alone = [
        scheduler.add_noise(prior[row : row + 1].expand(4, -1, -1, -1), *noise_of(batch, 4))
        for row in range(len(prior))
    ]
    near = torch.stack([(one - drawn).flatten(1).norm(dim=1) for one in alone]).min(dim=0).values
    assert near.max() < 1e-4


def noise_of(batch, start):
    return batch.target[start:], batch.timesteps[start:]


def test_every_picture_of_the_class_is_seen_in_turn(warm, examples, prior):
    trainer = Trainer(warm.pipe, recipe(**BOOTH, batch_size=2), examples, 0, prior)
    latents, text = trainer._batch(0, 0)
    seen = [trainer._with_prior(latents, text, step, 0)[0][2:] for step in range(3)]
    sums = sorted(round(one.sum().item(), 3) for one in torch.cat(seen))
    assert sums == sorted(2 * [round(one.sum().item(), 3) for one in prior])


@pytest.mark.parametrize("more", [{}, {"train_text_encoder": True, "snr_gamma": 5.0}])
def test_dreambooth_resumed_equals_straight_through(warm, examples, prior, tmp_path, more):
    settings = recipe(**BOOTH, accumulation=2, **more)

    def trainer():
        warm.reset()
        return Trainer(warm.pipe, settings, examples, 0, prior)

    whole = trainer()
    whole.train_to(4)
    expected = warm.changed()
    first = trainer()
    first.train_to(2)
    tensors, values = first.state()
    save_tensors(tmp_path / "state.safetensors", tensors)
    second = trainer()
    second.load_state(load_tensors(tmp_path / "state.safetensors"), values)
    second.train_to(4)
    assert_same(warm.changed(), expected)


def test_a_prior_needs_a_prompt_and_a_weight():
    for name, value in (("prior_weight", 1.0), ("prior_prompt", "a dog")):
        with pytest.raises(ValidationError, match=f"{name} needs"):
            recipe(**{name: value})
    without = recipe(prior_weight=0, prior_prompt="a dog", prior_images=3)
    assert without.identity() == recipe().identity()
