"""The protocol says what a pipeline really has."""

import inspect
import subprocess
import sys

import pytest
import torch

from workers.bases.shapes import Shapes
from workers.interfaces import pipeline as protocol
from workers.interfaces.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Shapes(Shapes.Settings()).load("cpu")


def members(of: type) -> list[str]:
    """What a class of the protocol says that there is."""
    return [*inspect.get_annotations(of), *(name for name in vars(of) if not name.startswith("_"))]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_pipelines_parts_and_their_configurations_have_what_is_said(
    pipe: Pipeline, part: str
) -> None:
    kind = {
        "unet": protocol.UNet,
        "vae": protocol.Autoencoder,
        "text_encoder": protocol.TextEncoder,
        "tokenizer": protocol.Tokenizer,
        "scheduler": protocol.Scheduler,
    }[part]
    there = getattr(pipe, part)
    since_an_adapter = ["peft_config"] if part == "unet" else []
    assert [name for name in members(kind) if not hasattr(there, name)] == since_an_adapter
    config = getattr(protocol, f"{kind.__name__}Config", None)
    if config is not None:
        assert [name for name in members(config) if not hasattr(there.config, name)] == []


def test_a_pipeline_has_what_is_said(pipe: Pipeline) -> None:
    assert [name for name in members(Pipeline) if not hasattr(pipe, name)] == []


def test_shapes_are_those_that_are_said(pipe: Pipeline) -> None:
    tokenizer = pipe.tokenizer
    prompts = ["a red circle", "a square"]
    length = tokenizer.model_max_length
    tokens = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    one = tokenizer(prompts[0], padding="max_length", max_length=length, truncation=True)
    assert tokens.input_ids.shape == (2, length)
    assert one.input_ids == tokens.input_ids[0].tolist()
    assert one.attention_mask == tokens.attention_mask[0].tolist()
    with torch.no_grad():
        text = pipe.text_encoder(tokens.input_ids)[0]
        encoded, _ = pipe.encode_prompt(prompts, pipe.device, 1, False)
        width = pipe.unet.config.cross_attention_dim
        assert text.shape == encoded.shape == (2, length, width)
        side = 32 // pipe.vae_scale_factor
        latents = pipe.vae.encode(torch.zeros(2, 3, 32, 32)).latent_dist.mode()
        assert latents.shape == (2, pipe.vae.config.latent_channels, side, side)
        assert pipe.unet(latents, 10, encoder_hidden_states=text).sample.shape == latents.shape
        assert pipe.vae.decode(latents).sample.shape == (2, 3, 32, 32)


def test_what_plug_ins_subclass_loads_no_torch() -> None:
    rooms = ["base", "dataset", "edit", "evaluation", "material", "metric", "pipeline", "unlearner"]
    code = (
        "import sys\n"
        + "".join(f"import workers.interfaces.{room}\n" for room in rooms)
        + "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
