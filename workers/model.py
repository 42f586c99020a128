"""The warm model: becomes whatever model stage is asked for, by the shortest way there is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from orchestrator.core.artifacts import DATASET, MATERIAL, WEIGHTS
from orchestrator.core.concepts import targets_of
from orchestrator.core.errors import ResurgeError
from orchestrator.core.plugin import Plugin
from orchestrator.core.registry import find
from orchestrator.core.stage import Stage
from orchestrator.store.store import Store, record_of
from workers.data.prepared import read_examples
from workers.diffusion.denoise import latent_shape
from workers.diffusion.rng import normal
from workers.diffusion.text import embed, refuse_cut
from workers.editing.edit_file import load_edits
from workers.editing.edits import Weights, live_parameters
from workers.editing.learned_token import reading
from workers.editing.pipeline import WarmPipeline
from workers.interfaces.base import Base
from workers.interfaces.dataset import Dataset, Examples
from workers.interfaces.edit import ModelEdit
from workers.interfaces.material import Made, Material, Work
from workers.interfaces.metric import Metric, Picture, Score, Subject, Which
from workers.interfaces.unlearner import Erasure, Unlearner
from workers.interfaces.update import Update
from workers.recipes import FinetuneSettings, SampleSettings
from workers.runtime.finite import check_tensors
from workers.runtime.kept import give_back, look_past_what_is_here
from workers.runtime.pace import Pace
from workers.runtime.progress import TellProgress
from workers.training.checkpoints import StoreCheckpoints, keep_state, latest_state, load_tensors
from workers.training.finetune import Trainer
from workers.training.spread import SpreadTrainer

if TYPE_CHECKING:
    from torch import Tensor

    from workers.interfaces.pipeline import Pipeline

P = TypeVar("P", bound=Plugin)
SAVING = 0.1
"""What saving a training state may take, as a share of the training since the last one."""


def plugin_of(kind: type[P], name: str, settings: Mapping[str, Any]) -> P:
    """The plug-in that a stage's (or a data set's) stored settings describe."""
    cls = find(kind.kind, name)
    return cast(P, cls(cls.Settings.model_validate(settings["settings"])))


def planned_plugin(kind: type[P], name: str, settings: Mapping[str, Any]) -> P:
    """The same, to be put to work.

    Raises:
        ResurgeError: the files that it reads are no longer those that the stage is named after.
    """
    plugin = plugin_of(kind, name, settings)
    if settings.get("fingerprint", "") not in ("", plugin.fingerprint()):
        raise ResurgeError(
            f"the files of {kind.kind} {name!r} are not those that the sweep was planned with: "
            "they changed since, or are others on this machine; the same command plans it anew"
        )
    return plugin


class Model:
    """One base in memory with the edits of a model stage made.

    `stage` is what the pipeline is now. `numbers` are the last unlearning's. `store`, `pace`,
    `progress` and `tell` belong to the task at hand and are set by it: `progress` is told how far
    training is, `tell` how far work is that can only be left as it is. Fine-tuning is spread over
    `processes`.
    """

    store: Store
    pace: Pace
    progress: TellProgress
    tell: TellProgress

    def __init__(self, root: Stage, device: str, processes: int = 1) -> None:
        self.root = root
        self.processes = processes
        self.stage = root
        self.warm = WarmPipeline(planned_plugin(Base, root.plugin, root.settings), device)
        look_past_what_is_here()
        self.trainer: Trainer | SpreadTrainer | None = None
        self.numbers: dict[str, float] = {}
        self._saved_s = self._unsaved_s = 0.0

    def become(self, target: Stage) -> None:
        """Make the pipeline the model that `target` is, computing only what cannot be loaded."""
        if self.stage == target:
            return
        trains_on = (
            self.trainer is not None
            and target.trajectory is not None
            and target.trajectory == self.stage.trajectory
            and self.stage.steps <= target.steps
        )
        if trains_on:
            self._train(target)
        elif target == self.root:
            self._settle()
            self.warm.reset()
        elif (record := self.store.get(target)) is not None and WEIGHTS in record.objects:
            self._settle()
            with self.store.object(record, WEIGHTS) as path:
                self.warm.put(load_edits(path))
        elif target.kind == "unlearn":
            self._unlearn(target)
        elif target.kind == "merge":
            self._merge(target)
        else:
            self._finetune(target)
        self.stage = target

    @contextmanager
    def evaluation(self, tokens: Mapping[str, str] | None = None) -> Iterator[Pipeline]:
        """The pipeline as it is to be judged: averaged and merged weights in place, and each of
        `tokens` that it has not learned read as the word beside it.
        """
        trained = self.trainer.evaluation() if self.trainer is not None else nullcontext()
        with trained, reading(self.warm.pipe, tokens or {}):
            yield self.warm.pipe

    def edits(self) -> tuple[ModelEdit, ...]:
        """What makes the base this model: all that has to be stored."""
        return self._now() if self.stage.kind == "finetune" else self.warm.edits

    def prepare(self, target: Stage) -> Made:
        """Make a material from the model that `target` hangs on."""
        self.become(target.model)
        self._settle()
        source = None
        if (parent := _parent(target)).kind == "prepare":
            source = self._material(parent)
        plugin = planned_plugin(Material, target.plugin, target.settings)
        return plugin.make(Work(self.warm.pipe, target.settings, source, self.tell))

    def new_examples(self, target: Stage) -> Examples:
        """Make the data set that `target` prepares, at the model's own size."""
        _, _, latent_width = latent_shape(self.warm.pipe)
        size_px = latent_width * self.warm.pipe.vae_scale_factor
        choice = target.settings["dataset"]
        dataset = planned_plugin(Dataset, choice["name"], choice)
        asked = target.settings
        concepts = tuple(asked["concepts"]) if "concepts" in asked else (asked.get("concept", ""),)
        examples = dataset.examples_of(concepts, size_px)
        return examples.named(dataset.name)

    def compare(self, target: Stage, metric: Metric) -> Score:
        """Score `target`'s weights beside the base's and those after the last unlearning."""
        self.become(_unlearned(target))
        unlearned = self._state()
        self.become(target)
        final = self._state()
        return metric.score_weights(self.warm.base_state(), unlearned, final)

    def subject(
        self, target: Stage, asked: Mapping[str, Any], reference: Sequence[Picture]
    ) -> Subject:
        """`target` for a metric that runs it; `asked` are the score's settings."""
        stages = {
            "base": self.root,
            "unlearned": _unlearned(target),
            "before": target.parent or target,
            "final": target,
        }

        targets = targets_of(asked)
        unknown = asked.get("never_known")
        [stranger] = targets_of(unknown) if unknown else [None]
        every = [*targets, *([stranger] if stranger else [])]
        refuse_cut(self.warm.pipe.tokenizer, [p for one in every for p in one.prompts])

        @contextmanager
        def at(which: Which) -> Iterator[Pipeline]:
            self.become(stages[which])
            with self.evaluation(asked.get("placeholders")) as pipe:
                yield pipe

        return Subject(
            targets=targets,
            sampling=SampleSettings.model_validate(asked.get("sampling", {})),
            reference=reference,
            at=at,
            examples=lambda: self._trained_on(target) if target.kind == "finetune" else None,
            progress=self.tell,
            stranger=stranger,
        )

    @property
    def losses(self) -> Sequence[tuple[int, float]]:
        """The (step, loss) pairs of the present trajectory from its first step on."""
        assert self.trainer is not None  # it is the task at hand
        return self.trainer.losses

    def checkpoint(self, target: Stage, needed: bool = True) -> None:
        """Store the training state, so that nothing up to here has to be trained again.

        If it is not `needed`, and not due either, it is left where writing the last one took more
        than a tenth of the training since: a large model's state outlasts a few of its steps.
        """
        assert self.trainer is not None and target.trajectory is not None
        if not (needed or self.pace.is_due() or self._saved_s <= SAVING * self._unsaved_s):
            return
        begin = time.perf_counter()
        keep_state(self.store, target.trajectory, self.trainer.step, *self.trainer.state())
        self._saved_s, self._unsaved_s = time.perf_counter() - begin, 0.0
        self.pace.done()

    def _unlearn(self, target: Stage) -> None:
        self.become(_parent(target))
        self._settle()
        before = self.warm.now()
        unlearner = planned_plugin(Unlearner, target.plugin, target.settings)
        checkpoints = StoreCheckpoints(self.store, target, self.pace)
        asked = target.settings
        targets, kept = targets_of(asked), tuple(asked.get("retained_prompts", ()))
        told = [p for one in targets for p in (*one.prompts, *one.anchor_prompts)]
        refuse_cut(self.warm.pipe.tokenizer, [*told, *kept])
        made = unlearner.unlearn(
            Erasure(
                pipe=self.warm.pipe,
                targets=targets,
                retained_prompts=kept,
                materials={name: self._material(stage) for name, stage in target.inputs.items()},
                seed=target.seed or 0,
                progress=self.tell,
                checkpoints=checkpoints,
                base=self.warm.base_state(),
            )
        )
        # Whatever the method left behind is gone: the model is what its edits say, no more.
        self.warm.put((*before, *made.edits))
        self._refuse_ruined(target, "lower the method's strength or its learning rate")
        give_back()
        self.numbers = dict(made.numbers)

    def _merge(self, target: Stage) -> None:
        """Add what the donor's training changed, or what was changed elsewhere, to the parent's
        weights; what stands beside the donor, such as adapters, stands beside it too.
        """
        beside: list[ModelEdit] = []
        if "donor" in target.inputs:
            change, beside = self._donated(target)
        else:
            change = self._made_elsewhere(target)
        self.become(_parent(target))
        self._settle()
        edits, now = self.warm.now(), self.warm.state()
        moved = [Weights({name: now[name] + d for name, d in change.items()})] if change else []
        self.warm.put((*edits, *moved, *beside))
        self._refuse_ruined(target, "the weights that were added do not fit this model")

    def _donated(self, target: Stage) -> tuple[dict[str, Tensor], list[ModelEdit]]:
        """By name, what the donor's training changed in the model that it began from, and what it
        put beside it.
        """
        donor = target.inputs["donor"]
        self.become(_parent(donor))
        before, stood = self._state(), self._beside()
        self.become(donor)
        change = {n: v - before[n] for n, v in self._state().items() if not v.equal(before[n])}
        return change, self._beside()[len(stood) :]

    def _made_elsewhere(self, target: Stage) -> dict[str, Tensor]:
        """By name, the change that an update plug-in adds, at its scale."""
        update = planned_plugin(Update, target.plugin, target.settings)
        scale, base = update.settings.scale, self.warm.base_state()
        change = update.change(self.warm.pipe, base)
        return {name: (scale * delta).to(base[name].dtype) for name, delta in change.items()}

    def _material(self, stage: Stage) -> Any:
        """What a prepared stage left in the store, read."""
        plugin = plugin_of(Material, stage.plugin, stage.settings)
        with self.store.object(record_of(self.store, stage), MATERIAL) as path:
            return plugin.read(load_tensors(path), stage.settings)

    def _now(self) -> tuple[ModelEdit, ...]:
        """Edits that make the base what is to be judged."""
        with self.evaluation():
            return (*self.warm.now(), *self._learned())

    def _learned(self) -> tuple[ModelEdit, ...]:
        """What the training at hand has put beside the model."""
        return () if self.trainer is None else self.trainer.beside()

    def _beside(self) -> list[ModelEdit]:
        """The edits that change no weight but stand beside the model."""
        return [edit for edit in self._now() if not isinstance(edit, Weights)]

    def _state(self) -> dict[str, Tensor]:
        with self.evaluation():
            return self.warm.state()

    def _finetune(self, target: Stage) -> None:
        """From the latest checkpoint at or before the target, else from the parent."""
        self.become(_parent(target))
        self._settle()
        settings = FinetuneSettings.model_validate(target.settings["settings"])
        seed, processes = target.seed or 0, min(self.processes, settings.batch_size)
        prior = None
        if (stage := target.inputs.get("prior")) is not None:
            prior = self._material(stage).latents
        if processes > 1:
            with self._dataset(target) as path:
                self.trainer = SpreadTrainer(self.warm, settings, path, seed, processes, prior)
        else:
            self.trainer = Trainer(self.warm.pipe, settings, self._examples(target), seed, prior)
        assert target.trajectory is not None
        kept = latest_state(self.store, target.trajectory, at_most=target.steps)
        if kept is not None:
            self.trainer.load_state(*kept[1:])
        self._unsaved_s = 0.0
        self._train(target)

    def _train(self, target: Stage) -> None:
        """Train on; the state is saved whenever that is due on the way."""
        assert self.trainer is not None
        begin = time.perf_counter()

        def save() -> None:
            nonlocal begin
            self.checkpoint(target)
            begin = time.perf_counter()
            self.pace.leave_if_asked()

        self.trainer.train_to(target.steps, self.progress, self.pace.is_due, save)
        self._unsaved_s += time.perf_counter() - begin
        self._refuse_ruined(target, "lower finetune.learning_rate")

    @torch.no_grad()
    def _refuse_ruined(self, target: Stage, advice: str) -> None:
        """See that the model is made of numbers and predicts some: no loss after the last update
        has said so, and what a closed form gives nobody has looked at.

        Raises:
            NotFinite: a weight, or a prediction of pure noise, is not finite.
        """
        where = f"after {target.kind} {target.plugin!r}"
        with self.evaluation() as pipe:
            edits = (*self.warm.edits, *self._learned())
            beside = [edit for edit in edits if not isinstance(edit, Weights)]
            made = {name: v for edit in beside for name, v in edit.tensors().items()}
            check_tensors({**live_parameters(pipe), **made}, where, advice)
            noise = normal((1, *latent_shape(pipe)), 0, 0, "last look", pipe.device)
            last = pipe.scheduler.config.num_train_timesteps - 1
            text = embed(pipe, [_erased(target)])
            found = pipe.unet(noise.to(pipe.unet.dtype), last, encoder_hidden_states=text).sample
            check_tensors({"the text's embedding": text, "the prediction": found}, where, advice)

    def _examples(self, target: Stage) -> Examples:
        """The prepared data that a fine-tune reads."""
        with self._dataset(target) as path:
            return read_examples(path)

    def _trained_on(self, target: Stage) -> Examples:
        """The same with the captions that it trains on."""
        return self._examples(target).captioned(target.settings["settings"]["caption"])

    def _dataset(self, target: Stage) -> AbstractContextManager[Path]:
        """The same as a file."""
        return self.store.object(record_of(self.store, target.inputs["dataset"]), DATASET.name)

    def _settle(self) -> None:
        """End the training at hand: the pipeline is plain again and holds the result."""
        if self.trainer is not None:
            self.warm.add(self.trainer.finish())
            self.trainer = None
            give_back()


def _unlearned(stage: Stage) -> Stage:
    """The model after the last unlearning on the way to `stage`, or the base."""
    *after, root = stage.ancestry()
    return next((s for s in after if s.unlearns), root)


def _erased(stage: Stage) -> str:
    """A concept that an unlearning, or data that depend on one, are of."""
    first: dict[str, Any] = next(iter(stage.settings.get("targets", ())), {})
    return str((first or stage.settings).get("concept", ""))


def _parent(stage: Stage) -> Stage:
    assert stage.parent is not None  # only a base has none, and a base is loaded
    return stage.parent
