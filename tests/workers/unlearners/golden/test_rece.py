import pytest

from tests.workers.unlearners.golden.released import erasure, weights
from workers.unlearners import rece
from workers.unlearners.rece import RECE

SETTINGS = {
    "lam": "derive_lam",
    "first_lam": "first_lam",
    "first_preserve_scale": "first_preserve_scale",
    "uce_lam": "edit_lam",
    "preserve_scale": "edit_preserve_scale",
    "erase_scale": "erase_scale",
    "target": "target",
    "epochs": "epochs",
}
"""Ours by the file's."""


@pytest.mark.parametrize("case", ["nudity", "style", "target"])
def test_the_whole_method(shapes, released, monkeypatch, case):
    with released("rece") as golden:
        asked = golden.settings["cases"][case]
        before, edited, derived = weights(shapes), [], []
        derive = rece.derived_embeddings

        def watched(pipe, *args):
            edited.append(weights(pipe))
            derived.append(derive(pipe, *args))
            return derived[-1]

        monkeypatch.setattr(rece, "derived_embeddings", watched)
        chosen = {ours: asked[theirs] for ours, theirs in SETTINGS.items()}
        method = RECE(RECE.Settings(tokens="from_last", **chosen))
        method.unlearn(erasure(shapes, asked["concept"], [asked["concept"]]))
        edited.append(weights(shapes))
        # The first edit of `style` is that of `nudity`, and stored once.
        first, *epochs = edited
        if case != "style":
            golden.compare_changes(f"{case}.first", before, first)
        for index, after in enumerate(epochs):
            golden.compare(f"{case}.derived.{index}", derived[index])
            golden.compare_changes(f"{case}.epoch{index}", before, after)
