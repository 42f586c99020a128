import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from orchestrator.core.errors import ResurgeError
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.datasets.nearest import Nearest
from workers.shapes.making.tokenizer import build_tokenizer

BASE = Shapes(Shapes.Settings())
OTHER_BASE = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
RELATED = {"related": {"size": 48}}


def nearest(of=RELATED, **settings):
    return Nearest(Nearest.Settings(of=of, **settings))


def read(**settings):
    return nearest(**settings).examples("star", 32)


@pytest.mark.parametrize("by", ["captions", "pictures"])
def test_bins_part_the_set_by_distance(by):
    near, middle, far = (read(by=by, bin=b) for b in ("near", "middle", "far"))
    assert [len(part) for part in (near, middle, far)] == [16, 16, 16]
    assert near.distances[-1] <= middle.distances[0] <= middle.distances[-1] <= far.distances[0]
    assert list(near.distances) == sorted(near.distances)
    assert near.distances[0] < far.distances[-1]
    assert len({*near.sources, *middle.sources, *far.sources}) == 48


def test_the_pictures_that_look_most_like_a_star_are_near():
    near, far = (read(bin=b) for b in ("near", "far"))
    counts = [sum("circle" in caption for caption in part.captions) for part in (near, far)]
    assert counts[0] < counts[1]


@pytest.mark.parametrize(("by", "at_least"), [("captions", 4), ("pictures", 6)])
def test_the_concept_itself_is_nearest(by, at_least):
    """A quarter of the set are stars: by chance two of eight would be."""
    of = {"mixed": {"of": RELATED, "share": 0.25, "size": 40}}
    examples = read(of=of, by=by, k=8)
    assert sum("star" in caption for caption in examples.captions) >= at_least


def test_k_takes_the_nearest():
    everything = read(bin="near", bins=(1.0, 1.0))
    assert read(k=5).sources == everything.sources[:5]
    assert len(everything) == 48


def test_equal_distances_stay_in_the_sets_order():
    of = {"novel": {"size": 40}}
    examples = read(of=of, by="captions", bin="near", bins=(1.0, 1.0))
    numbers = [int(source.rpartition(" ")[2]) for source in examples.sources]
    assert len(set(examples.distances)) < 40
    for a, b in zip(range(39), range(1, 40), strict=True):
        if examples.distances[a] == examples.distances[b]:
            assert numbers[a] < numbers[b]


def test_the_same_settings_give_the_same_examples():
    first, again = (read(bin="far", size=6, seed=2) for _ in range(2))
    assert len(first) == 6
    assert first.sources == again.sources
    assert np.array_equal(first.images, again.images)
    assert first.sources != read(bin="far", size=6, seed=3).sources


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs either bin"),
        ({"bin": "near", "k": 3}, "needs either bin"),
        ({"k": 3, "size": 3}, "size is for a bin"),
        ({"bin": "near", "bins": (0.7, 0.3)}, "two quantiles"),
        ({"bin": "near", "by": "clip"}, "needs clip"),
        ({"bin": "near", "clip": "a/b"}, "are for by: clip"),
        ({"bin": "near", "by": "clip", "clip": "a/b"}, "needs clip_revision, a commit"),
        ({"bin": "near", "by": "clip", "clip": "nowhere"}, "owner/name or a folder"),
        ({"bin": "near", "of": "relatd"}, "did you mean 'related'"),
        ({"bin": "near", "of": {"related": {"size": 0}}}, "size: Input should be"),
        ({"bin": "near", "of": {"folder": {}}}, "path: Field required"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        nearest(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bin": "middle", "bins": (0.5, 0.5)}, "has nothing in its bin 'middle': 48 pictures"),
        ({"k": 49}, "has 48 pictures but k is 49; lower k"),
        ({"bin": "near", "size": 17}, "bin 'near', has 16 pictures but size is 17; lower size"),
    ],
)
def test_an_empty_or_too_small_part_is_known_when_the_sweep_is_planned(settings, message):
    assert message in nearest(**settings).problems(BASE, "star")[0]
    with pytest.raises(ResurgeError, match=message.split("'")[0]):
        read(**settings)


def test_the_embedding_must_fit_the_base(tmp_path):
    digits = {"digits": {"size": 30}}
    assert "use by: clip" in nearest(digits, bin="near").problems(OTHER_BASE, "a cat")[0]
    clip = nearest(digits, bin="near", by="clip", clip=str(tmp_path))
    assert clip.problems(OTHER_BASE, "a cat") == []
    assert "needs base 'shapes'" in nearest(bin="near").problems(OTHER_BASE, "a cat")[0]


def test_the_identity_has_the_sets_and_the_embeddings(tmp_path):
    one = nearest(bin="near").fingerprint()
    assert nearest(bin="far").fingerprint() == one  # the bin is in the settings
    assert nearest({"related": {"size": 49}}, bin="near").fingerprint() != one
    assert nearest(bin="near", by="captions").fingerprint() != one
    assert nearest({"related": {"size": 48, "seed": 0}}, bin="near").settings.identity() == {
        "of": {"related": {"size": 48}},
        "bin": "near",
    }


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP with random weights, a few kilobytes large."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer()
    shared = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shared |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**shared, **text}, vision_config={**shared, "image_size": 32, "patch_size": 8}
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side)
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def test_clip_measures_pictures_against_the_concepts_name(clip_folder):
    chosen = nearest({"digits": {"size": 30}}, bin="near", by="clip", clip=str(clip_folder))
    examples = chosen.examples("star", 32)
    assert len(examples) == 10
    assert examples.distances == chosen.examples("star", 32).distances
    assert list(examples.distances) == sorted(examples.distances)
    assert examples.distances != chosen.examples("circle", 32).distances


def test_clip_that_cannot_be_loaded(tmp_path):
    chosen = nearest({"digits": {"size": 30}}, bin="near", by="clip", clip=str(tmp_path))
    with pytest.raises(ResurgeError, match="clip: cannot load CLIPModel from"):
        chosen.examples("star", 32)
