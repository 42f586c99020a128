"""The data sets that a model was fine-tuned on, as MLflow shows a run's inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.core.artifacts import DATASET, EXAMPLES
from orchestrator.core.stage import Stage
from orchestrator.results.measure import TrialReader


@dataclass(frozen=True)
class DataInput:
    """A data set in MLflow's own terms: `source`, `schema` and `profile` are JSON texts."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str
    profile: str


def data_inputs(reader: TrialReader, model: Stage) -> tuple[DataInput, ...]:
    """The prepared data sets on the way to a model, the first one first, each once."""
    edits = [stage.inputs.get("donor", stage) for stage in reversed(list(model.ancestry()))]
    stages = [stage for stage in edits if stage.kind == "finetune"]
    datasets = [stage.inputs["dataset"] for stage in stages if "dataset" in stage.inputs]
    records = {dataset: reader.record(dataset) for dataset in datasets}
    columns = [
        {"type": column.type, "name": column.name, "required": column.is_required}
        for column in DATASET.columns
    ]
    store = reader.store
    scheme, is_uri, _ = store.location.partition("://")
    root = store.location.rstrip("/") if is_uri else store.root
    found = []
    for stage, record in records.items():
        if record is None:
            continue
        choice = stage.settings["dataset"]
        numbers = {name: value for name, value in record.metrics.items() if name != EXAMPLES}
        profile = {"num_rows": int(record.metrics[EXAMPLES]), **numbers}
        found.append(
            DataInput(
                name=choice["name"],
                digest=record.key,
                source_type=scheme if is_uri else "local",
                source=json.dumps({"uri": f"{root}/{record.objects[DATASET.name].path}"}),
                schema=json.dumps({"mlflow_colspec": columns}),
                profile=json.dumps({**profile, "settings": choice["settings"]}),
            )
        )
    return tuple(dict.fromkeys(found))
