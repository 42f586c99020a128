"""Whoever judges by a model's classes says before anything is drawn what it does not know."""

import pytest

from orchestrator.core.registry import find
from tests.workers.metrics.tiny_models import save_classifier
from workers.judging.classes import NoClassError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_classifier(tmp_path_factory.mktemp("classes"), ("cat", "dog")))


def made(name, **settings):
    plugin = find("metric", name)
    return plugin(plugin.Settings(**settings))


@pytest.fixture(params=["classifier", "seed_search", "unlearncanvas"])
def judge(request, folder):
    if request.param == "seed_search":
        return made("seed_search", judge={"classifier": {"model": folder}})
    if request.param == "unlearncanvas":
        return made("unlearncanvas", styles=folder, objects=folder)
    return made("classifier", model=folder)


def test_what_is_erased_must_be_a_class(judge):
    judge.look_ahead(["cat", "Dog"], [])
    with pytest.raises(NoClassError, match=r"class (for )?'zebra'"):
        judge.look_ahead(["cat", "zebra"], [])


def test_what_should_survive_must_be_one_where_it_is_scored(folder):
    with pytest.raises(NoClassError, match="no class for 'zebra'"):
        made("classifier", model=folder).look_ahead(["cat"], ["zebra"])
    made("classifier", model=folder, labels={"zebra": ["dog"]}).look_ahead(["cat"], ["zebra"])
    made("unlearncanvas", styles=folder, objects=folder).look_ahead(["cat"], ["zebra"])


def test_other_metrics_have_nothing_to_say():
    made("clip_score").look_ahead(["anything"], ["else"])
    made("seed_search").look_ahead(["star"], [])
