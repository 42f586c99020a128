"""A tiny Stable Diffusion pipeline with random weights: every code path, no quality."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from workers.bases.shapes import Shapes
from workers.datasets.related import Related
from workers.editing.pipeline import WarmPipeline
from workers.shapes.making.architecture import TEXT_WIDTH, assemble, new_text_encoder, new_vae
from workers.shapes.making.tokenizer import build_tokenizer

# Tensors this small are slower on several threads, above all on a busy machine.
torch.set_num_threads(1)


def tiny_unet():
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )


class TinyShapes(Shapes):
    """The shapes base's words with an untrained model."""

    def shapes(self):
        return None

    def load(self, device):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = assemble(new_vae(), new_text_encoder(build_tokenizer()), tiny_unet())
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.eval().requires_grad_(False)
        return pipe.to(device)


@pytest.fixture
def tiny_base():
    return TinyShapes(TinyShapes.Settings())


@pytest.fixture
def warm(tiny_base):
    return WarmPipeline(tiny_base, "cpu")


@pytest.fixture
def pipe(warm):
    return warm.pipe


@pytest.fixture(scope="session")
def examples():
    return Related(Related.Settings(size=12)).examples("star", 32)


@pytest.fixture(autouse=True)
def one_thread():
    """A test that sets another number would slow down every later one."""
    yield
    assert torch.get_num_threads() == 1
