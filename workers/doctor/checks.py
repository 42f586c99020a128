"""Whether a base model can be used here, and at what cost: one check after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, ParamSpec

import numpy as np
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.denoise import latent_shape
from workers.diffusion.sampling import sample_floats
from workers.diffusion.text import last_subject_index
from workers.doctor.memory import count, estimates, free_bytes
from workers.interfaces.base import Base
from workers.interfaces.dataset import Examples
from workers.interfaces.pipeline import PARTS
from workers.recipes import FinetuneSettings, SampleSettings
from workers.runtime.finite import NotFinite
from workers.training.finetune import Trainer

if TYPE_CHECKING:
    from workers.interfaces.pipeline import Pipeline

P = ParamSpec("P")
GREY = 128
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One line of the report. `advice` says what to do if the status is not "ok"."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def examine(base: Base, say: Callable[[str], None] = lambda text: None) -> Iterator[Check]:
    """Every check in turn, the cheap ones first; ends early where nothing more can be learned.

    Args:
        say: is told what is being done; loading and the two steps can take minutes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    free = free_bytes(device)  # before the model is in it
    say("loading the pipeline")
    begin = time.perf_counter()
    try:
        pipe = base.load(device)
    except ResurgeError as error:
        yield Check("loading", "fail", str(error), "see the message")
        return
    yield Check("loading", "ok", f"{time.perf_counter() - begin:.1f} s on {device}")
    yield weights_format(base)
    concept = next(iter(base.concepts() or ()), "dog")
    prompt = base.prompts(concept)[0]
    checks = [
        _guarded("components", components, pipe),
        _guarded("tokenizer", tokenizer, pipe),
        _guarded("padding", padding, pipe),
        _guarded("subject position", subject_position, pipe, prompt, concept),
        _guarded("prediction", prediction, pipe),
        _guarded("text width", text_width, pipe),
    ]
    yield from checks
    try:
        yield from memory(pipe, free)
    except Exception as error:  # as in `_guarded`
        yield Check("memory", "fail", f"{type(error).__name__}: {error}", "see the configurations")
    if any(check.status == "fail" for check in checks):
        yield Check("steps", "warn", "not tried", "mend what failed first")
        return
    say("one sampling step")
    yield _guarded("sampling step", sampling_step, pipe, base, prompt)
    say("one training step")
    yield _guarded("training step", training_step, pipe, prompt)


def _guarded(name: str, check: Callable[P, Check], *args: P.args, **kwargs: P.kwargs) -> Check:
    """A check that raises has failed: a broken model may break anything."""
    try:
        return check(*args, **kwargs)
    except Exception as error:
        message = " ".join(str(error).split()) or "no message"
        return Check(name, "fail", f"{type(error).__name__}: {message[:300]}", "see the message")


def weights_format(base: Base) -> Check:
    """Safetensors, or pickles that were allowed."""
    name, weights = "weights", base.weights()
    if weights is None:
        return Check(name, "ok", "the base's own")
    if weights.revision is not None:
        return Check(name, "ok", f"repository at {weights.revision[:12]}")
    pickles = [file.name for file in weights.files if file.suffix != ".safetensors"]
    size = sum(file.stat().st_size for file in weights.files) / GB
    if not pickles:
        return Check(name, "ok", f"safetensors, {size:.2f} GB")
    is_read = weights.reads_pickles
    advice = "convert them with pipe.save_pretrained" if is_read else "they are not read"
    return Check(
        name, "warn" if is_read else "ok", f"{size:.2f} GB with pickles: {pickles[0]}", advice
    )


def components(pipe: Pipeline) -> Check:
    """The parts that have weights, in millions of parameters."""
    sizes = [f"{part} {count(getattr(pipe, part)) / 1e6:.1f} M" for part in PARTS]
    _, height, width = latent_shape(pipe)
    scale = pipe.vae_scale_factor
    found = f"{', '.join(sizes)}; pictures of {width * scale} × {height * scale} pixels"
    return Check("components", "ok", found)


def tokenizer(pipe: Pipeline) -> Check:
    """Its vocabulary and length must be the text encoder's."""
    size, length = len(pipe.tokenizer), pipe.tokenizer.model_max_length
    config = pipe.text_encoder.config
    rows, positions = config.vocab_size, config.max_position_embeddings
    found = f"{size:,} tokens, prompts of {length}"
    if size > rows or length > positions:
        had = f"{found}; the text encoder has {rows:,} and {positions}"
        return Check("tokenizer", "fail", had, "take the tokenizer that the model was made with")
    if size < rows:
        had = f"{found}; the text encoder has {rows:,}"
        return Check("tokenizer", "warn", had, "is it the tokenizer that the model was made with?")
    return Check("tokenizer", "ok", found)


def padding(pipe: Pipeline) -> Check:
    """The token after a prompt's end: models are sensitive to it, and versions differ."""
    token = pipe.tokenizer.pad_token
    if token == pipe.tokenizer.eos_token:
        return Check("padding", "ok", "end token, as SD 1.x")
    if token == "!":
        return Check("padding", "ok", '"!", as SD 2.x')
    advice = "neither SD 1.x's nor SD 2.x's: look at tokenizer/special_tokens_map.json"
    return Check("padding", "warn", repr(token), advice)


def subject_position(pipe: Pipeline, prompt: str, concept: str) -> Check:
    """Methods that edit a concept's token must find it whatever the padding."""
    index = last_subject_index(pipe.tokenizer, prompt, concept)
    ids = pipe.tokenizer(prompt).input_ids
    found = f"{prompt!r}: {pipe.tokenizer.decode([ids[index]]).strip()!r} at {index}"
    if ids[index] == pipe.tokenizer(concept).input_ids[-2]:
        return Check("subject position", "ok", found)
    advice = f"expected the last token of {concept!r}: is it a CLIP tokenizer?"
    return Check("subject position", "fail", found, advice)


def prediction(pipe: Pipeline) -> Check:
    """What the UNet predicts, and on which noise schedule."""
    config = pipe.scheduler.config
    kind = config.get("prediction_type", "epsilon")
    betas = f"{config.beta_schedule} {config.beta_start:g} to {config.beta_end:g}"
    found = f"{kind}; {betas} over {config.num_train_timesteps} time steps"
    return Check("prediction", "ok", found)


def text_width(pipe: Pipeline) -> Check:
    """The text encoder must give what the UNet's cross-attention takes."""
    given, taken = pipe.text_encoder.config.hidden_size, pipe.unet.config.cross_attention_dim
    if given == taken:
        return Check("text width", "ok", f"{given}")
    found = f"text encoder {given}, UNet's cross-attention {taken}"
    return Check("text width", "fail", found, "the two are parts of different models")


def memory(pipe: Pipeline, free: int) -> Iterator[Check]:
    """A line for each kind of work; `free` bytes were there before the pipeline was loaded."""
    is_cpu = pipe.device.type == "cpu"
    for need in estimates(pipe).values():
        device, host = need.device_bytes, need.host_bytes
        total = device + host if is_cpu else device
        beside = "" if is_cpu else f" and {host / GB:.2f} GB of host memory"
        found = f"about {total / GB:.2f} GB{beside}; {free / GB:.1f} GB are free"
        fits = total <= free and (is_cpu or host <= free_bytes("cpu"))
        advice = "" if fits else "will not fit here; of training, adapter: lora needs least"
        status: Literal["ok", "warn"] = "ok" if fits else "warn"
        yield Check(f"memory: {need.work}", status, found, advice)


def sampling_step(pipe: Pipeline, base: Base, prompt: str) -> Check:
    """One picture in one DDIM step: is it made of finite numbers?"""
    settings = SampleSettings(
        images_per_prompt=1, guidance=base.guidance, sampler_steps=1, batch_size=1
    )
    begin = time.perf_counter()
    try:
        sample_floats(pipe, [prompt], settings)
    except NotFinite:
        advice = "use torch_dtype float32" if pipe.unet.dtype != torch.float32 else "bad weights"
        return Check("sampling step", "fail", "the picture is not finite", advice)
    took = f"{time.perf_counter() - begin:.1f} s for one picture in one step"
    return Check("sampling step", "ok", took)


def training_step(pipe: Pipeline, prompt: str) -> Check:
    """One step of the training loop on one grey picture; the UNet's weights are put back.

    Full fine-tuning if it fits into memory, else LoRA.
    """
    name = "training step"
    if pipe.unet.dtype != torch.float32:
        return Check(name, "warn", "not tried", "training needs torch_dtype float32")
    adapter = _adapter_that_fits(pipe)
    if adapter is None:
        return Check(name, "warn", "not tried: not enough memory", "use a larger machine")
    _, height, _ = latent_shape(pipe)
    side = height * pipe.vae_scale_factor
    examples = Examples(np.full((1, side, side, 3), GREY, dtype=np.uint8), (prompt,))
    settings = FinetuneSettings(adapter=adapter, steps=1, batch_size=1, gradient_checkpointing=True)
    before = {n: p.detach().to("cpu", copy=True) for n, p in pipe.unet.named_parameters()}
    begin = time.perf_counter()
    trainer = Trainer(pipe, settings, examples, seed=0)
    trainer.train_to(1)
    took = time.perf_counter() - begin
    trainer.finish()
    with torch.no_grad():
        for parameter, value in pipe.unet.named_parameters():
            value.copy_(before[parameter])
    [(_, loss)] = trainer.losses
    what = "full" if adapter == "full" else "LoRA; full does not fit"
    return Check(name, "ok", f"{took:.1f} s for one picture and one step ({what}), loss {loss:.3f}")


def _adapter_that_fits(pipe: Pipeline) -> Literal["full", "lora"] | None:
    """What the step would add to the loaded pipeline, against what is free now."""
    needs = estimates(pipe)
    loaded = sum(
        value.numel() * value.itemsize for p in PARTS for value in getattr(pipe, p).parameters()
    )
    free = free_bytes(str(pipe.device))
    is_cpu = pipe.device.type == "cpu"
    for adapter in ("full", "lora"):
        need = needs[adapter]
        added = need.device_bytes - loaded + (need.host_bytes if is_cpu else 0)
        if added <= free:
            return adapter
    return None
