"""Pictures of the bundled world whose contents are known."""

import numpy as np

from workers.shapes.render import random_scene, render


def rendered(count, seed=0, **shown):
    rng = np.random.default_rng(seed)
    return [render(random_scene(rng, **shown)) for _ in range(count)]


def noisy(images, amount, seed=0):
    """With Gaussian noise of `amount` grey levels."""
    rng = np.random.default_rng(seed)
    return [
        (image + amount * rng.standard_normal(image.shape)).clip(0, 255).astype(np.uint8)
        for image in images
    ]
