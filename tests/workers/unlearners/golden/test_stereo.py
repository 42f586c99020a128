import torch
from torch.nn import functional

import workers.diffusion.rng
import workers.erasure.negative_guidance
import workers.unlearners.stereo as stereo
from tests.workers.unlearners.golden.released import Released, erasure, weights
from workers.diffusion.soft_prompt import encode, token_ids
from workers.erasure.negative_guidance import erased_target
from workers.erasure.stops import as_stereo_released
from workers.unlearners.stereo import STEREO, final_target


def test_the_targets(released):
    with released("stereo") as golden:
        nothing, *concepts, anchor, _ = golden.input("target.predictions").split(1)
        for scale, suffix in ((2, ""), (3, "_scale_3")):
            found = erased_target(concepts[0], nothing, scale - 2)
            golden.compare(f"target.search{suffix}", found)
            found = final_target(torch.stack(concepts), anchor, nothing, scale - 1, scale + 1)
            golden.compare(f"target.final{suffix}", found)


def test_where_x_t_stands_and_is_evaluated():
    golden = Released("stereo")
    stops = as_stereo_released(range(981, 0, -20), 20)
    golden.compare_exactly("time.k", torch.tensor([len(stop.walked) for stop in stops]))
    levels = torch.tensor([stop.walked[-1] - 20 for stop in stops])
    golden.compare_exactly("time.level_of_x_t", levels)
    evaluated = torch.tensor([t for stop in stops for t in stop.evaluated])
    golden.compare_exactly("time.t_of_loss", evaluated)
    golden.check()


def test_what_a_found_token_reads_as(shapes, released):
    with released("stereo") as golden:
        tokens = golden.input("tokens")
        with torch.no_grad():
            text = encode(shapes, token_ids(shapes, ["", ""], 1), tokens)
        golden.compare("token_embeddings", text)


def test_three_steps_of_the_search_and_of_the_end(shapes, released, monkeypatch):
    """Two rounds whose inversion gives the stored tokens; the second round's erasing is free."""
    with released("stereo") as golden:
        asked, before, seen = golden.settings, weights(shapes), {"loss": [], "target": []}
        names = ["concept", "token0", "token1"]
        order = {
            "erase 0 prompts": [0, 0, 0],
            "final prompts": [names.index(name) for name in asked["final"]["erased"]],
        }
        assert asked["final"]["all_negatives"] == names

        def inverted(self, erasure, turn):
            if turn == 0:
                golden.compare_changes("search", before, weights(shapes))
                compare_losses(golden, "search", seen)
            for values in seen.values():
                values.clear()
            tokens = golden.input("tokens")[turn : turn + 1]
            with torch.no_grad():
                return encode(shapes, token_ids(shapes, [""], 1), tokens)

        def draw(erasure, settings, unet, text, empty, step, *_, **__):
            return golden.input("x_t")[step : step + 1], int(golden.input("t")[step])

        def shuffled(high, count, seed, step, stream):
            return torch.tensor([order[stream][step] if stream in order else 0])

        def mse_loss(found, target):
            seen["target"].append(target)
            seen["loss"].append(mse(found, target))
            return seen["loss"][-1]

        mse = functional.mse_loss
        monkeypatch.setattr(functional, "mse_loss", mse_loss)
        monkeypatch.setattr(workers.erasure.negative_guidance, "draw", draw)
        monkeypatch.setattr(workers.diffusion.rng, "shuffled", shuffled)
        monkeypatch.setattr(stereo.STEREO, "_invert", inverted)
        anchors = (asked["anchor_prompt"],)
        STEREO(
            STEREO.Settings(
                rounds=2,
                batch_size=1,
                search_iterations=asked["iterations"],
                iterations=asked["iterations"],
                search_rate=asked["search"]["learning_rate"],
                learning_rate=asked["final"]["learning_rate"],
            )
        ).unlearn(erasure(shapes, asked["concept"], [asked["prompt"]], anchor_prompts=anchors))
        golden.compare_changes("final", before, weights(shapes))
        compare_losses(golden, "final", seen)


def compare_losses(golden, phase, seen):
    golden.compare(f"{phase}.target", torch.cat(seen["target"]))
    golden.compare(f"{phase}.loss", torch.stack(seen["loss"]))
