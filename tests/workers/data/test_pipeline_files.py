"""Which of a model's files are read, and what can be seen to be no model without reading it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.core.errors import ResurgeError
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import WEIGHTS
from workers.data.pipeline_files import files_of, part_files
from workers.interfaces.pipeline import PARTS

FILES = {part: "diffusion_pytorch_model" for part in ("unet", "vae")} | {"text_encoder": "model"}


def base(source, **settings):
    return Diffusers(Diffusers.Settings(source=str(source), **settings))


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(WEIGHTS, tmp_path / "model")


def rename(folder, part, variant):
    """Put a part's weights into a variant."""
    name = FILES[part]
    (folder / part / f"{name}.safetensors").rename(folder / part / f"{name}.{variant}.safetensors")


def mark(file):
    """Make a file's weights tell that they were read."""
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith(("conv_in.weight", "final_layer_norm.bias")))
    tensors[name] = torch.full_like(tensors[name], 0.25)
    save_file(tensors, file, metadata={"format": "pt"})


def is_marked(pipe, part):
    own = dict(getattr(pipe, part).named_parameters())
    names = [key for key in own if key.endswith(("conv_in.weight", "final_layer_norm.bias"))]
    return any(bool((own[name] == 0.25).all()) for name in names)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
@pytest.mark.parametrize("parts", [PARTS, ("unet",), ("vae",), ("text_encoder",)])
def test_a_variant_is_read_by_itself_where_only_it_is_there(folder, parts, variant):
    for part in parts:
        rename(folder, part, variant)
    assert base(folder).fingerprint()
    pipe = base(folder).load("cpu")
    assert {getattr(pipe, part).dtype for part in PARTS} == {torch.float32}


@pytest.mark.parametrize("part", PARTS)
def test_of_several_the_one_without_a_variant_is_read_unless_another_is_asked_for(folder, part):
    plain = folder / part / f"{FILES[part]}.safetensors"
    other = folder / part / f"{FILES[part]}.non_ema.safetensors"
    shutil.copy(plain, other)
    mark(other)
    by_default, asked = base(folder), base(folder, variant="non_ema")
    assert not is_marked(by_default.load("cpu"), part)
    assert is_marked(asked.load("cpu"), part)
    # What is hashed is what is read, and nothing else.
    before = by_default.fingerprint(), asked.fingerprint()
    mark(plain)
    assert asked.fingerprint() == before[1]
    assert by_default.fingerprint() != before[0]


def test_variants_to_choose_from_are_named(folder):
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    rename(folder, "unet", "fp16")
    for use in (base(folder).fingerprint, lambda: base(folder).load("cpu")):
        with pytest.raises(ResurgeError, match="unet has its weights as fp16, non_ema only; set v"):
            use()
    assert base(folder, variant="fp16").load("cpu")
    with pytest.raises(ResurgeError, match="no part has weights of variant 'ema'; there are fp16,"):
        base(folder, variant="ema").fingerprint()


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("part", PARTS)
def test_shards_are_read_and_hashed(folder, part, variant):
    pipe = base(folder).load("cpu")
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    size = sum(v.numel() * 4 for v in getattr(pipe, part).parameters()) // 3
    getattr(pipe, part).save_pretrained(folder / part, variant=variant, max_shard_size=size)
    shards = sorted((folder / part).glob("*-of-*.safetensors"))
    assert len(shards) > 1
    loaded = base(folder).load("cpu")
    for name, value in getattr(pipe, part).state_dict().items():
        assert torch.equal(getattr(loaded, part).state_dict()[name], value), name
    before = base(folder).fingerprint()
    tensors = load_file(shards[-1])
    save_file({n: v + 1 for n, v in tensors.items()}, shards[-1], metadata={"format": "pt"})
    assert base(folder).fingerprint() != before


def test_pickles_are_read_only_where_there_is_nothing_better():
    names = ["model.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin", "config.json"]
    assert part_files("text_encoder", names, None, True).files == ("model.safetensors",)
    with pytest.raises(ResurgeError, match=r"text_encoder/pytorch_model.bin is a pickle"):
        part_files("text_encoder", names[1:], None, False)
    assert part_files("text_encoder", names[1:], "fp16", True).files == ("pytorch_model.fp16.bin",)
    with pytest.raises(ResurgeError, match="unet has no weights"):
        files_of(["unet/config.json"], None, True)


def test_folders_that_are_links_are_hashed_by_what_they_lead_to(folder, tmp_path):
    (folder / "unet").rename(tmp_path / "A")
    (folder / "unet").symlink_to(tmp_path / "A")
    before = base(folder).fingerprint()
    mark(tmp_path / "A" / "diffusion_pytorch_model.safetensors")
    assert base(folder).fingerprint() != before


def write(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "said"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"},
         "it is a StableDiffusionXLPipeline; it must be a text-to-image Stable Diffusion 1.x or"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "StableDiffusion3Pipe"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "it is a FluxPipeline"),
        ("model_index.json", {"_class_name": None}, "its model_index.json names no pipeline"),
        ("model_index.json", {"unet": None}, "its unet is missing"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "vae is a AutoencoderTiny"),
        ("model_index.json",
         {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]},
         "its text_encoder is a CLIPTextModelWithProjection"),
        ("unet/config.json", {"sample_size": None}, "the UNet has sample_size null; it must be"),
        ("unet/config.json", {"sample_size": [8, 16]},
         "the UNet has sample_size [8, 16]; pictures here are square, so it must be one number"),
        ("unet/config.json", {"sample_size": "8"}, "the UNet has sample_size '8'"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "the UNet has time_cond_proj_dim 256"),
        ("unet/config.json", {"cross_attention_dim": 768}, "parts of different models"),
        ("vae/config.json", {"scaling_factor": None}, "the autoencoder has scaling_factor null"),
        ("vae/config.json", {"shift_factor": 0.06}, "the autoencoder has shift_factor 0.06"),
        ("vae/config.json", {"latent_channels": 16}, "a UNet of 4 channels is over latents of 16"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"},
         "the scheduler is a FlowMatchEulerDiscreteScheduler"),
        ("scheduler/scheduler_config.json",
         {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
         "the scheduler has rescale_betas_zero_snr with prediction_type 'epsilon'"),
    ],
)  # fmt: skip
def test_another_model_is_refused_when_it_is_planned_and_when_it_is_loaded(
    folder, file, values, said
):
    write(folder / file, **values)
    with pytest.raises(ResurgeError) as error:
        base(folder).fingerprint()
    assert said in str(error.value)
    assert str(folder) in str(error.value)
    with pytest.raises(ResurgeError):
        base(folder).load("cpu")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("unet/config.json", "{", "cannot be read as JSON"),
        ("vae/config.json", "[]", "must hold a JSON object but holds list"),
        ("scheduler/scheduler_config.json", None, "is missing"),
        ("model_index.json", "null", "must hold a JSON object but holds NoneType"),
        ("model_index.json", None, "has no model_index.json: it is no model in diffusers' layout"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_sentence(folder, file, text, said):
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(ResurgeError, match=said):
        base(folder).fingerprint()
    with pytest.raises(ResurgeError):
        base(folder).load("cpu")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["unet.down_blocks.0.attentions.0.attn1.to_q.lora_A.weight"], "is a LoRA"),
        (["lora_unet_down_blocks_0_attentions_0.lora_down.weight"], "is a LoRA"),
        (["conditioner.embedders.0.x", "model.diffusion_model.x"], "it is an SDXL checkpoint"),
        (["model.diffusion_model.joint_blocks.0.x"], "it is an SD 3 checkpoint"),
        (["double_blocks.0.img_attn.x"], "it is a FLUX checkpoint"),
        (["model.diffusion_model.x"], "no weights of autoencoder and text encoder under the names"),
    ],
)
def test_a_file_that_is_no_model_is_refused_when_it_is_planned(tmp_path, names, said):
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(ResurgeError, match=said):
        base(file).fingerprint()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\1\0\0\0\0\0\0\0{"]
)
def test_a_damaged_file_is_refused_when_it_is_planned(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ResurgeError):
        base(file).fingerprint()


def test_a_folder_with_a_lora_is_no_model(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ResurgeError, match=r"pytorch_lora_weights.safetensors is a LoRA"):
        base(tmp_path).fingerprint()
