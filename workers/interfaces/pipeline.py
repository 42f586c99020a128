"""What a base gives to the workers and to plug-ins: a diffusion pipeline's parts.

`Pipeline` names what is used of a pipeline and no more. diffusers' `StableDiffusionPipeline` has it
all; a base of another family gives an object that has it too. The letters of the shapes: n pictures
or prompts, (c, h, w) a picture's latents, `tokens` a prompt's padded length, `width` the numbers
that stand for one token.

For annotations only: the networks are modules of torch, which planning must not load, so that at
run time nothing is an instance of the classes here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, overload

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import Tensor
    from torch.nn import Embedding, Module
else:
    Module = object

Ids = TypeVar("Ids", covariant=True)

PARTS = ("unet", "vae", "text_encoder")
"""The pipeline's parts that have weights."""


class UNetConfig(Protocol):
    """How the denoiser was made."""

    in_channels: int
    sample_size: int | tuple[int, int]
    """Height and width of the latents that it was made for; one number if they are the same."""
    cross_attention_dim: int
    """The width of the text embeddings that it takes."""
    block_out_channels: Sequence[int]
    layers_per_block: int


class Predicted(Protocol):
    """What the denoiser returns."""

    sample: Tensor
    """(n, c, h, w): the noise or v, as the scheduler's `prediction_type` says."""


class UNet(Module):
    """The denoiser; its cross-attention modules have paths that end in ".attn2".

    `add_adapter` puts LoRA beside its layers, and notes that in the two attributes of peft.
    """

    config: UNetConfig
    dtype: torch.dtype
    peft_config: dict[str, LoraConfig]
    _hf_peft_config_loaded: bool

    @abstractmethod
    def __call__(
        self, sample: Tensor, timestep: Tensor | float, encoder_hidden_states: Tensor
    ) -> Predicted:
        """Noisy latents (n, c, h, w), time steps (n,) or one for all, text (n, tokens, width)."""

    @abstractmethod
    def add_adapter(self, adapter_config: LoraConfig, adapter_name: str) -> None:
        """Put peft's modules in the place of the layers that the configuration names."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass instead of keeping them."""

    @abstractmethod
    def disable_gradient_checkpointing(self) -> None:
        """Keep activations."""


class AutoencoderConfig(Protocol):
    """How the autoencoder was made."""

    latent_channels: int
    scaling_factor: float
    """What its latents are multiplied by before the denoiser sees them."""
    block_out_channels: Sequence[int]


class LatentDistribution(Protocol):
    """The normal distribution of latents that pictures are encoded to."""

    def mode(self) -> Tensor:
        """(n, c, h, w), not scaled."""


class Encoded(Protocol):
    """What the autoencoder's `encode` returns."""

    latent_dist: LatentDistribution


class Decoded(Protocol):
    """What the autoencoder's `decode` returns."""

    sample: Tensor
    """(n, 3, height, width), about -1 to 1."""


class Autoencoder(Module):
    """Pictures to latents and back; never edited nor trained."""

    config: AutoencoderConfig
    dtype: torch.dtype

    @abstractmethod
    def encode(self, x: Tensor) -> Encoded:
        """Pictures (n, 3, height, width) in [-1, 1]."""

    @abstractmethod
    def decode(self, z: Tensor) -> Decoded:
        """Latents (n, c, h, w), their scaling undone."""


class TextEncoderConfig(Protocol):
    """How the text encoder was made."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int


class TextEncoder(Module):
    """Token ids to text embeddings."""

    config: TextEncoderConfig
    dtype: torch.dtype

    @abstractmethod
    def __call__(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Token ids (n, tokens); first of what it returns: embeddings (n, tokens, width)."""

    @abstractmethod
    def get_input_embeddings(self) -> Embedding:
        """The table of the tokens' own embeddings (vocabulary, width)."""


class Tokens(Protocol[Ids]):
    """What the tokenizer returns: ids, and 1 for each that is no padding."""

    @property
    def input_ids(self) -> Ids: ...

    @property
    def attention_mask(self) -> Ids: ...


class Tokenizer(Protocol):
    """Text to token ids: a start token, the words, an end token, and padding if that is asked."""

    model_max_length: int
    bos_token_id: int
    eos_token_id: int
    eos_token: str
    pad_token: str
    all_special_ids: list[int]

    def __len__(self) -> int: ...

    @overload
    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: Literal["max_length"],
        max_length: int,
        truncation: bool,
        return_tensors: Literal["pt"],
    ) -> Tokens[Tensor]: ...

    @overload
    def __call__(
        self,
        text: str,
        *,
        padding: Literal["max_length"] | bool = ...,
        max_length: int | None = ...,
        truncation: bool = ...,
    ) -> Tokens[list[int]]: ...

    @overload
    def __call__(
        self,
        text: list[str],
        *,
        padding: Literal["max_length"] | bool = ...,
        max_length: int | None = ...,
        truncation: bool = ...,
    ) -> Tokens[list[list[int]]]: ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text that the ids stand for."""

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""

    def add_tokens(self, new_tokens: list[str]) -> int:
        """Read these as one token each, with ids behind all others; how many are new."""

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """The id of a token."""


class SchedulerConfig(Protocol):
    """The noise schedule; a configuration is also a mapping, for settings that may be missing."""

    beta_schedule: str
    beta_start: float
    beta_end: float
    num_train_timesteps: int
    prediction_type: str

    @overload
    def get(self, key: Literal["prediction_type"], default: str, /) -> str: ...

    @overload
    def get(self, key: Literal["clip_sample"], default: bool, /) -> bool: ...


class Scheduler(Protocol):
    """What the model was trained on; samplers and training make schedulers of their own of it."""

    @property
    def config(self) -> SchedulerConfig: ...


class Pipeline(Protocol):
    """A text-to-image latent diffusion model, in evaluation mode, on one device."""

    unet: UNet
    vae: Autoencoder
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    scheduler: Scheduler
    vae_scale_factor: int
    """How many pixels of a picture's side are one of its latents'."""

    @property
    def device(self) -> torch.device:
        """Where all networks are."""

    def encode_prompt(
        self,
        prompt: list[str],
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        /,
    ) -> tuple[Tensor, Tensor | None]:
        """Text embeddings (n, tokens, width) as the denoiser takes them; those of the empty prompt
        too if guidance is said to be done.
        """
