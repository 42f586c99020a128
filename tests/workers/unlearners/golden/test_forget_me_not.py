import pytest
import torch

from tests.workers.unlearners.golden.released import erasure, weights
from tests.workers.unlearners.steps import pictures, watch
from workers.diffusion.attention import recorded
from workers.diffusion.denoise import predictor
from workers.diffusion.text import embed, end_tokens, subject_words
from workers.erasure.relabel import NoisyPictures, PictureSet
from workers.unlearners.forget_me_not import ForgetMeNot, attention_norms

TOKENS = ["words", "words_and_end"]


@pytest.mark.parametrize("tokens", TOKENS)
def test_positions_and_the_norm_of_a_batch(shapes, released, tokens):
    with released("forget_me_not") as golden:
        prompts = [golden.settings["prompt"]] * 2
        words = subject_words(shapes, prompts, golden.settings["concept"])
        if tokens == "words_and_end":
            words = words | end_tokens(shapes, prompts)
        golden.compare_exactly(f"{tokens}.positions", words[0].to(torch.uint8))
        with recorded(shapes.unet) as maps, torch.no_grad():
            x_t, t = golden.input("batch.x_t"), golden.input("batch.t")
            predictor(shapes, "output")(x_t, t, embed(shapes, prompts))
        norms = attention_norms({n: maps[n] for n in layers(golden, tokens, maps)}, words)
        golden.compare(f"{tokens}.batch.each_layer", norms)
        golden.compare(f"{tokens}.batch.loss", norms.norm())


def layers(golden, tokens, maps):
    """The layers' paths in the file's order."""
    names = golden.names(f"{tokens}.batch")
    return [next(path for path in maps if name.startswith(path)) for name in names]


@pytest.mark.parametrize("group", ["xattn", "full"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_three_updates(shapes, released, monkeypatch, tokens, group):
    with released("forget_me_not") as golden:
        s, before, steps = golden.settings, weights(shapes), watch(monkeypatch)
        x_t, t = golden.input("x_t"), golden.input("t")

        def batch(self, count, seed, step, stream):
            own = slice(step, step + 1)
            return NoisyPictures(
                x_t[own], torch.zeros_like(x_t[own]), t[own], torch.zeros(1).long()
            )

        monkeypatch.setattr(PictureSet, "batch", batch)
        settings = ForgetMeNot.Settings(
            iterations=s["iterations"],
            learning_rate=s["learning_rate"][group],
            batch_size=1,
            group=group,
            tokens=tokens,
            clip_norm=s["clip_norm"],
        )
        materials = {"forget": pictures(x_t, s["prompt"])}
        ForgetMeNot(settings).unlearn(
            erasure(shapes, s["concept"], [s["prompt"]], materials=materials)
        )
        case = f"{tokens}.{group}"
        golden.compare(f"{case}.loss", steps.loss())
        golden.compare(f"{case}.gradient_norm", steps.norm())
        golden.compare_changes(case, before, weights(shapes))
        if group == "xattn":
            golden.compare_values(f"{case}.first_gradient", steps.gradients[0])
            name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
            signs = steps.gradients[0][name][:16].sign().to(torch.int8)
            golden.compare_exactly(f"{case}.first_gradient_sign", signs)
