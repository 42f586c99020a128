import json
import sys

import pytest
import torch
from diffusers import UNet2DConditionModel

from orchestrator.cli.common import out
from orchestrator.cli.main import main
from workers.bases.diffusers import Diffusers
from workers.doctor.checks import examine, training_step
from workers.doctor.memory import estimates


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def report(source, **settings):
    base = Diffusers(Diffusers.Settings(source=str(source), **settings))
    return {check.name: check for check in examine(base)}


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_good_model_passes_every_check(folder):
    found = report(folder)
    assert {check.status for check in found.values()} == {"ok"}
    assert found["padding"].found == "end token, as SD 1.x"
    assert found["prediction"].found.startswith("epsilon")


def test_stable_diffusion_2s_padding_and_prediction_are_known(pipe, tmp_path):
    pipe.tokenizer.pad_token = "!"
    pipe.scheduler.register_to_config(prediction_type="v_prediction")
    pipe.save_pretrained(tmp_path)
    found = report(tmp_path)
    assert {check.status for check in found.values()} == {"ok"}
    assert found["padding"].found == '"!", as SD 2.x'
    assert found["prediction"].found.startswith("v_prediction")


def test_another_padding_is_a_warning(pipe, tmp_path):
    pipe.tokenizer.pad_token = "a</w>"
    pipe.save_pretrained(tmp_path)
    assert report(tmp_path)["padding"].status == "warn"


def test_the_weights_are_put_back_after_the_training_step(pipe):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    assert training_step(pipe, "a star").status == "ok"
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_parts_of_different_models_do_not_fit(pipe, folder):
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, cross_attention_dim=32)
    pipe.unet.save_pretrained(folder / "unet")
    found = report(folder)
    assert found["text width"].status == "fail"
    assert found["steps"].found == "not tried"


def test_numbers_that_are_not_finite_are_seen(pipe, folder):
    torch.nn.init.constant_(pipe.unet.conv_out.bias, torch.inf)
    pipe.unet.save_pretrained(folder / "unet")
    found = report(folder)
    assert found["sampling step"].status == found["training step"].status == "fail"


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("unet/config.json", {"sample_size": None}, "the UNet has sample_size null"),
        ("unet/config.json", {"sample_size": [8, 16]}, "pictures here are square"),
        ("unet/config.json", {"layers_per_block": [1, 1]}, "the UNet has layers_per_block [1, 1]"),
        ("vae/config.json", {"scaling_factor": None}, "the autoencoder has scaling_factor null"),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "such models predict v (v_prediction)",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EDMEulerScheduler"},
            "the scheduler is a EDMEulerScheduler",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_one_sentence(folder, monkeypatch, capsys, file, values, said):
    monkeypatch.setattr(out, "width", 500)  # a narrower table breaks the sentence where it likes
    change(folder / file, **values)
    assert run(monkeypatch, folder) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert "Traceback" not in printed


def test_a_configuration_of_nonsense_is_no_traceback(folder):
    change(folder / "text_encoder" / "config.json", hidden_size=None)
    change(folder / "vae" / "config.json", block_out_channels="wide")
    assert "fail" in {check.status for check in report(folder).values()}


def test_memory_grows_with_what_is_trained(pipe):
    needs = estimates(pipe)
    total = {name: need.device_bytes + need.host_bytes for name, need in needs.items()}
    assert total["full"] > total["lora"] > total["closed_form"]
    weights = sum(4 * p.numel() for p in pipe.unet.parameters())
    # Weights, a pristine copy, two moments, and a checkpoint of three more.
    assert total["full"] > 7 * weights


def test_training_the_text_encoder_too_takes_its_moments_and_checkpoint(pipe):
    needs = estimates(pipe)
    total = {name: need.device_bytes + need.host_bytes for name, need in needs.items()}
    text = sum(p.numel() for p in pipe.text_encoder.parameters())
    assert total["full_text"] - total["full"] >= (8 + 4) * text
    assert total["lora_text"] > max(total["lora"], total["inversion"])


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["resurge", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def test_exit_codes(folder, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "shapes") == 0
    assert "training step" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path / "nowhere") == 2
    assert "does not exist here" in capsys.readouterr().err
    assert run(monkeypatch, "owner/name") == 2
    assert "commit hash" in capsys.readouterr().err
    assert run(monkeypatch, folder, "--torch-dtype", "int8") == 2
    assert "'float32'" in capsys.readouterr().err
    assert run(monkeypatch, "diffusers") == 2
    assert run(monkeypatch, "shapes", "--allow-pickle") == 2


def test_pickles_and_missing_weights_fail_the_check(pipe, folder, monkeypatch, capsys):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    assert run(monkeypatch, folder) == 1
    assert "has no weights" in capsys.readouterr().out
    torch.save(pipe.unet.state_dict(), weights.with_suffix(".bin"))
    assert run(monkeypatch, folder) == 1
    assert "is a pickle" in capsys.readouterr().out
    assert run(monkeypatch, folder, "--allow-pickle") == 0
    assert "with pickles" in capsys.readouterr().out
