"""Networks that come as ONNX files inside the wheels of others."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.core.errors import ResurgeError


def wheel_folder(package: str, needs: str) -> Path:
    """Where an installed package's files are; it is not imported.

    Args:
        needs: how to end the sentence if it or onnxruntime is not there: "metric 'x' needs …".

    Raises:
        ResurgeError: they are not both installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or importlib.util.find_spec("onnxruntime") is None:
        raise ResurgeError(needs)
    return Path(spec.origin).parent


@lru_cache(maxsize=4)
def session(path: Path) -> Any:
    """A file's network, on the CPU."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # a worker does not own the machine
    options.log_severity_level = 3  # it warns of outputs whose size it finds out as it runs
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
