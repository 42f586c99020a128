import torch
from diffusers import DDIMScheduler

from tests.workers.unlearners.golden.drawn import draw_stored
from tests.workers.unlearners.golden.released import erasure, weights
from workers.diffusion.denoise import predictor, training_scheduler
from workers.unlearners.esd import ESD


def predict_v(pipe):
    """Let the pipeline say that its model predicts v."""
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )


def test_esd_compares_the_models_own_outputs(shapes, released, monkeypatch):
    with released("v_prediction") as golden:
        predict_v(shapes)
        asked, before = golden.settings, weights(shapes)
        given = [golden.input(f"esd.{name}") for name in ("start", "k", "t", "x_t")]
        seen = draw_stored(monkeypatch, *given)
        method = ESD(
            ESD.Settings(
                preset="sd-newer-x",
                precision="fp32",
                negative_guidance=asked["eta"],
                **{n: asked[n] for n in ("iterations", "learning_rate", "start_guidance")},
            )
        )
        method.unlearn(erasure(shapes, "star", [asked["prompt"]]))
        golden.compare_exactly("esd.t", torch.tensor(seen.t))
        golden.compare("esd.x_t", torch.cat(seen.x_t))
        golden.compare("esd.target", torch.cat(seen.targets))
        golden.compare("esd.prediction", torch.cat(seen.predictions))
        golden.compare("esd.loss", torch.stack(seen.losses))
        golden.compare_changes("esd", before, weights(shapes))


class Answers(torch.nn.Module):
    """A model that answers each text's first number with one output."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x_t, t, encoder_hidden_states):
        chosen = encoder_hidden_states[:, 0, 0].long()
        return type("Output", (), {"sample": self.outputs[chosen]})


def test_what_a_mean_square_in_noise_is_of_that_in_outputs(shapes, released):
    with released("v_prediction") as golden:
        predict_v(shapes)
        outputs = torch.cat([golden.input("ratio.v"), golden.input("ratio.target")])
        model, x_t = Answers(outputs), golden.input("ratio.x_t")
        text = torch.arange(2.0).view(2, 1, 1)

        def loss(loss_in, t):
            predict = predictor(shapes, loss_in, model)
            v, target = predict(x_t.expand(2, -1, -1, -1), t, text)
            return torch.nn.functional.mse_loss(v, target)

        times = golden.input("ratio.t").tolist()
        kept = training_scheduler(shapes).alphas_cumprod
        golden.compare("ratio.loss_of_output", loss("output", 0))
        golden.compare("ratio.loss_of_noise", torch.stack([loss("noise", t) for t in times]))
        golden.compare("ratio.alphas_cumprod", kept[times])
        golden.compare("ratio.mean_alphas_cumprod", kept.mean())
        golden.compare("ratio.share_below_0.1", (kept < 0.1).double().mean())
