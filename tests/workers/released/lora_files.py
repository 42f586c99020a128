"""LoRA files of a pipeline in the layouts in which people save them."""

import json

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

UNET = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in"]
TEXT = ["q_proj", "v_proj"]
RANK, ALPHA = 3, 6.0


def add_lora(pipe, seed=0, alpha=ALPHA):
    """peft's modules with factors that are not 0, in the UNet and the text encoder."""
    unet = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=UNET)
    text = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=TEXT)
    pipe.unet.add_adapter(unet)
    pipe.text_encoder.add_adapter(text)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in (pipe.unet, pipe.text_encoder):
            for name, value in part.named_parameters():
                if ".lora_" in name:
                    value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    return unet, text


def save_as_diffusers(pipe, folder, **notes):
    """As train_text_to_image_lora.py and train_dreambooth_lora.py end."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)),
        text_encoder_lora_layers=convert_state_dict_to_diffusers(
            get_peft_model_state_dict(pipe.text_encoder)
        ),
        safe_serialization=True,
        **notes,
    )
    return folder / "pytorch_lora_weights.safetensors"


def save_as_kohya(pipe, path, alpha=ALPHA):
    """As sd-scripts name them: the path with underscores, and an alpha a layer."""
    tensors = {}
    for start, part in (("lora_unet", pipe.unet), ("lora_te_text_model", pipe.text_encoder)):
        for name, value in get_peft_model_state_dict(part).items():
            layer, _, role = name.removesuffix(".weight").rpartition(".lora_")
            layer = f"{start}_{layer.removeprefix('text_model.').replace('.', '_')}"
            tensors[f"{layer}.lora_{'down' if role == 'A' else 'up'}.weight"] = value.contiguous()
            tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})
    return path


def save_as_peft(part, config, folder):
    """As PeftModel.save_pretrained does."""
    folder.mkdir()
    state = get_peft_model_state_dict(part)
    tensors = {f"base_model.model.{name}": value.contiguous() for name, value in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    said = config.to_dict()
    said["target_modules"] = sorted(said["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(said, default=str))
    return folder / "adapter_model.safetensors"


def merged_by_peft(pipe):
    """Every weight with the adapters merged by peft, by "unet.…" and "text_encoder.…"."""
    found = {}
    for part in ("unet", "text_encoder"):
        for path, layer in getattr(pipe, part).named_modules():
            if hasattr(layer, "get_delta_weight") and "default" in getattr(layer, "lora_A", {}):
                weight = layer.get_base_layer().weight.detach()
                found[f"{part}.{path}.weight"] = weight + layer.get_delta_weight("default").detach()
    return found
