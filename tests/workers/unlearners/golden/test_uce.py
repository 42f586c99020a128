import pytest

from tests.workers.unlearners.golden.released import erasure, weights
from workers.unlearners.uce import UCE

CASES = [
    "newer_bare", "newer_ten", "newer_target", "newer_not_last", "y2023_bare", "y2023_ten",
    "y2023_longer", "y2023_two", "unlearncanvas",
]  # fmt: skip
TOKENS = {"last_subject": "last", "from_subject": "from_last"}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_edit(shapes, released, case):
    with released("uce") as golden:
        asked = golden.settings["cases"][case]
        before = weights(shapes)
        method = UCE(
            UCE.Settings(
                tokens=TOKENS[asked["tokens"]],
                **{n: asked[n] for n in ("erase_scale", "preserve_scale", "lam", "target")},
            )
        )
        retained = tuple(asked["retained_prompts"])
        method.unlearn(
            erasure(shapes, asked["concept"], asked["edited_prompts"], retained_prompts=retained)
        )
        golden.compare_changes(case, before, weights(shapes))
