import numpy as np
from sklearn.datasets import load_digits

from workers.datasets.digits import NAMES, Digits
from workers.shapes.vocabulary import WORDS


def examples(**settings):
    return Digits(Digits.Settings(**settings)).examples("star", 32)


def test_captions_name_the_digits_in_words_that_the_base_knows():
    captions = examples(size=1797).captions
    counts = [captions.count(f"the digit {name}") for name in NAMES]
    assert counts == np.bincount(load_digits().target).tolist()
    assert set(" ".join(captions).split()) <= set(WORDS)


def test_pictures_are_grey_squares_of_the_size_asked_for():
    images = examples(size=7).images
    assert images.shape == (7, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images[..., 0], images[..., 2])
    assert images.max() > 200


def test_the_seed_chooses():
    assert np.array_equal(examples(size=5).images, examples(size=5).images)
    assert not np.array_equal(examples(size=5).images, examples(size=5, seed=1).images)
