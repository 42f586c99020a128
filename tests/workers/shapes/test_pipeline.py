import pytest
import torch
from diffusers import StableDiffusionPipeline

from orchestrator.stats.paired import wilson
from workers.shapes.judge import WEIGHTS, Judge
from workers.shapes.making.architecture import load_pipeline
from workers.shapes.making.evaluate import generate, measure
from workers.shapes.vocabulary import NOVEL_SHAPES, SHAPES, caption

IMAGES = 24


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(WEIGHTS / "pipeline")


def share_named(pipeline: StableDiffusionPipeline, shapes: tuple[str, ...], each: int) -> float:
    wanted = [shape for shape in shapes for _ in range(each)]
    images = generate(pipeline, [caption(shape) for shape in wanted], seed=11)
    named = Judge.load().names(images)["shape"]
    return sum(a == b for a, b in zip(named, wanted, strict=True)) / len(wanted)


def test_loads_in_single_precision_without_a_safety_checker(pipeline):
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    assert pipeline.safety_checker is None


def test_layout_is_stable_diffusion_1(pipeline):
    names = [name for name, _ in pipeline.unet.named_modules()]
    assert any(name.endswith("attn1.to_q") for name in names)
    assert any(name.endswith("attn2.to_k") for name in names)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.tokenizer.model_max_length == 16


def test_weights_are_small():
    size_bytes = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size_bytes < 12_000_000


def test_same_seed_draws_the_same_images(pipeline):
    first, second = (generate(pipeline, ["a red star"] * 2, seed=1) for _ in range(2))
    assert torch.equal(first, second)


def test_draws_the_shapes_it_knows(pipeline):
    assert share_named(pipeline, SHAPES, each=12) >= 0.95


def test_does_not_draw_novel_shapes(pipeline):
    assert share_named(pipeline, NOVEL_SHAPES, each=24) <= 0.1


@pytest.fixture(scope="module")
def drawn(pipeline) -> dict[str, dict[str, float]]:
    return measure(pipeline, Judge.load(), images_per_word=IMAGES, seed=12)


@pytest.mark.slow
def test_every_shape_is_drawn_at_its_target(drawn):
    assert sum(drawn["shape"].values()) / len(SHAPES) >= 0.95
    assert min(drawn["shape"].values()) >= 0.85, drawn["shape"]


def reaches(share: float, target: float, images: int = IMAGES) -> bool:
    """Whether the target lies within the interval of a share measured on so few images."""
    return wilson(share * images, images)[1] >= target


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["color", "fill"])
def test_colors_and_fills_are_drawn_at_their_target(drawn, kind):
    words = drawn[kind]
    assert sum(words.values()) / len(words) >= 0.90
    assert all(reaches(share, 0.90) for share in words.values()), words


@pytest.mark.slow
def test_novel_words_draw_no_novel_shape(drawn):
    assert max(drawn["novel"].values()) <= 0.1, drawn["novel"]
