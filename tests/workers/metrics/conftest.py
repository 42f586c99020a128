import pytest
import torch

from tests.workers.metrics.tiny_models import save_clip

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))
