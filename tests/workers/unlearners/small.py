"""Settings under which any method takes a moment, and materials without a store."""

from typing import Any

from workers.interfaces.material import Work

SMALL: dict[str, Any] = {
    "iterations": 2,
    "batch_size": 2,
    "sampler_steps": 2,
    "images_per_prompt": 1,
    "retain_images_per_prompt": 1,
    "images": 2,
    "rounds": 1,
    "search_iterations": 1,
    "inversion_steps": 2,
    "attack_steps": 2,
    "mask_batches": 1,
    "score_batches": 1,
    "warmup_iterations": 1,
    "warmup_steps": 1,
    "soft_tokens": 1,
    "retain_batch_size": 2,
    "rank": 1,
}
"""By the names that methods' settings share; a method takes those that it has."""


def small(cls, **chosen):
    """An instance of a method with few of everything; `chosen` replaces settings."""
    fields = cls.Settings.model_fields
    return cls(cls.Settings(**{k: v for k, v in SMALL.items() if k in fields} | chosen))


def make_materials(pipe, method, base, erased):
    """What the method asks for, made of `pipe` as it is now."""
    return {name: _material(pipe, need) for name, need in method.needs(base, erased).items()}


def _material(pipe, need):
    source = _material(pipe, need.of) if need.of else None
    plugin = need.plugin
    if "sampler_steps" in plugin.Settings.model_fields:
        plugin = type(plugin)(plugin.settings.model_copy(update={"sampler_steps": 2}))
    made = plugin.make(Work(pipe, need.asked, source, lambda *_: None))
    return plugin.read(made.tensors, need.asked)


class NoCheckpoints:
    """Nothing is kept."""

    def load(self, phase):
        return None

    def is_due(self):
        return False

    def save(self, phase, step, tensors):
        return None
