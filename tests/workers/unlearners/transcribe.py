"""What published equations share, written with raw calls, to compare the methods with.

Random numbers come from the project's streams, so that both sides draw the same; nothing else of
the methods' own machinery is used.
"""

import torch
from diffusers import DDIMScheduler
from torch.nn import functional

from workers.diffusion.rng import integers, normal
from workers.editing.edits import live_parameters
from workers.erasure.materials import Pictures

FORGET = ("a star", "a red star")
ANCHOR = ("a circle", "a red circle")
RETAIN = ("a square", "a heart", "a blue cross")

SAMPLER_STEPS = 4
"""Of these the first two iterations take 3 and 2: neither starts from pure noise, where it would
not show whose denoising it is."""

mse = functional.mse_loss


def noise_pictures(prompts):
    """One picture of noise for each prompt."""
    shape = (len(prompts), 4, 8, 8)
    images = torch.zeros(len(prompts), 3, 32, 32, dtype=torch.uint8)
    return Pictures(normal(shape, 7, 0, f"pictures {prompts}"), images, prompts)


def eps(unet, x_t, t, text):
    return unet(x_t, t, encoder_hidden_states=text).sample


@torch.no_grad()
def fixed(unet, x_t, t, text):
    return eps(unet, x_t, t, text)


def pick(rows, count, step, stream="prompts"):
    return rows[integers(len(rows), count, 0, step, stream)]


@torch.no_grad()
def partly_denoised(pipe, unet, c, empty, guidance, step, noise="", stream=""):
    """x_t after k of N guided DDIM steps from noise, and the time step at which step k starts."""
    sampler = DDIMScheduler.from_config(pipe.scheduler.config)
    sampler.set_timesteps(SAMPLER_STEPS)
    k = integers(SAMPLER_STEPS, 1, 0, step, f"denoised steps{stream}").item()
    x = normal((len(c), 4, 8, 8), 0, step, f"initial noise{stream}{noise}")
    for t in sampler.timesteps[:k]:
        towards, away = eps(unet, x, t, c), eps(unet, x, t, empty.expand_as(c))
        x = sampler.step(away + guidance * (towards - away), t, x).prev_sample
    return x, sampler.timesteps[k]


def noised(pipe, pictures, count, step, stream):
    """Which pictures, x_t = √ā x_0 + √(1-ā) ε, ε, and t."""
    rows = integers(len(pictures), count, 0, step, f"rows {stream}")
    x_0 = pictures.latents[rows]
    noise = normal(x_0.shape, 0, step, f"noise {stream}")
    t = integers(1000, count, 0, step, f"timesteps {stream}")
    kept = pipe.scheduler.alphas_cumprod.to(x_0)[t].view(-1, 1, 1, 1)
    return rows, kept.sqrt() * x_0 + (1 - kept).sqrt() * noise, noise, t


def attention(unet, forward):
    """softmax(q kᵀ / √d) of every attn2 in `forward()`: path -> (n, heads, pixels, tokens)."""
    seen, handles = {}, []
    for path, module in unet.named_modules():
        if path.endswith((".attn2.to_q", ".attn2.to_k")):
            hook = lambda _module, _args, output, path=path: seen.update({path: output})  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    forward()
    for handle in handles:
        handle.remove()
    maps = {}
    for path, module in unet.named_modules():
        if path.endswith(".attn2"):
            q, k = (
                seen[f"{path}.to_{which}"].unflatten(2, (module.heads, -1)).transpose(1, 2)
                for which in "qk"
            )
            maps[path] = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    return maps


def trainable(module, belongs):
    """The parameters whose names belong, ready to be trained."""
    chosen = {name: value for name, value in module.named_parameters() if belongs(name)}
    for value in chosen.values():
        value.requires_grad_(True)
    return chosen


def minimise(optimizer, loss, steps=2):
    """Steps of a raw optimiser; the mean loss, as methods report it."""
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return sum(losses) / steps


def assert_same(unlearned, pipe, names, loss=None):
    """The edit holds just the named weights ("unet.…"), with `pipe`'s values."""
    (edit,) = unlearned.edits
    live = live_parameters(pipe)
    assert edit.values.keys() == set(names)
    for name, value in edit.values.items():
        torch.testing.assert_close(
            value, live[name].detach(), msg=lambda why, name=name: f"{name}: {why}"
        )
    if loss is not None:
        torch.testing.assert_close(unlearned.numbers["loss"], loss, rtol=1e-6, atol=1e-12)
