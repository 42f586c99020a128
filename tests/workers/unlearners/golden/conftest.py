"""The bundled pipeline in fp64, and the released codes' numbers, each as stored and disturbed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from tests.workers.unlearners.bundled import BASE
from tests.workers.unlearners.golden.released import Released

DISTURBED = 0.01


@pytest.fixture(params=[0.0, DISTURBED], ids=["as-released", "disturbed"])
def released(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[str], AbstractContextManager[Released]]:
    """Open a method's numbers: `with released("uce") as golden:`, which are checked at its end."""

    @contextmanager
    def opened(name: str) -> Iterator[Released]:
        golden = Released(name, request.param)
        yield golden
        golden.check()
        if not golden.disturbed:
            record_property("golden", (name, golden.largest()))

    return opened


@pytest.fixture(scope="session")
def bundled():
    return BASE.load("cpu")


@pytest.fixture
def shapes(bundled, double_precision, monkeypatch):
    """The bundled pipeline in fp64, its noise schedule too: ᾱ as computed in fp32, then cast."""
    for scheduler in (DDIMScheduler, DDPMScheduler):
        made = scheduler.from_config.__func__

        def precise(cls, *args, made=made, **kwargs):
            found = made(cls, *args, **kwargs)
            found.alphas_cumprod = found.alphas_cumprod.double()
            if hasattr(found, "final_alpha_cumprod"):
                found.final_alpha_cumprod = found.final_alpha_cumprod.double()
            return found

        monkeypatch.setattr(scheduler, "from_config", classmethod(precise))
    pipe = copy.deepcopy(bundled)
    pipe.unet.double()
    pipe.text_encoder.double()
    pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.double()
    return pipe
