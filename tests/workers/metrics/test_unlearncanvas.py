import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.core.errors import ResurgeError
from tests.workers.metrics.tiny_models import noise_images, pictures_of, save_classifier
from tests.workers.metrics.worlds import rendered
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.data.pinned import Source
from workers.judging.classes import load_classifier
from workers.metrics.unlearncanvas import UnlearnCanvas

EACH = 20
JUDGED = UnlearnCanvas(UnlearnCanvas.Settings())
OBJECTS = ("Dogs", "Polar_Bear", "Bear")
STYLES = ("Van_Gogh", "Rust")


def shapes(role, concept, prompt=None, **shown):
    return pictures_of(rendered(EACH, **shown), role, concept, prompt)


def told(**accuracies):
    """Each as it stands alone, and once more by role where there is one role of its kind."""
    roles = {"UA": "erased", "IRA": "retained", "CRA": "retained"}
    return accuracies | {f"{name}.{roles[name]}": value for name, value in accuracies.items()}


def test_known_pictures_of_the_bundled_world():
    """Stars that became hearts; of two retained shapes one right; of two colours both; no fill."""
    score = JUDGED.score_images(
        [
            *shapes("erased", "star", shape="heart"),
            *shapes("retained", "circle", "a red circle", shape="circle", color="red"),
            *shapes("retained", "cross", "a blue cross", shape="square", color="blue"),
            *shapes("never_known", "bolt", shape="heart"),
        ]
    )
    assert score.metrics == pytest.approx(told(UA=1, IRA=0.5, CRA=1), abs=0.1)
    assert score.values == ()


def test_what_was_not_unlearned_and_a_color_that_went_with_the_shape():
    score = JUDGED.score_images(
        [
            *shapes("erased", "star", shape="star"),
            *shapes("retained", "red", "a red shape", color="green"),
            *shapes("retained", "striped", "a striped shape", fill="striped"),
        ]
    )
    assert score.metrics == pytest.approx(told(UA=0, CRA=0.5), abs=0.1)


def test_a_color_has_its_own_domain():
    score = JUDGED.score_images(
        [
            *shapes("erased", "red", color="red"),
            *shapes("retained", "blue", "a blue star", color="blue", shape="heart"),
        ]
    )
    assert score.metrics == pytest.approx(told(UA=0, IRA=1, CRA=0), abs=0.1)


def test_every_role_that_should_survive_counts_and_stands_alone():
    score = JUDGED.score_images(
        [
            *shapes("erased", "star", shape="star"),
            *shapes("synonym", "star", "one star", shape="heart"),
            *shapes("related", "cross", "a cross", shape="cross"),
            *shapes("other", "circle", "a red circle", shape="heart", color="red"),
        ]
    )
    assert next(iter(score.metrics)) == "UA"
    assert score.metrics == pytest.approx(
        {
            "UA": 0, "UA.erased": 0, "UA.synonym": 1,
            "IRA": 0.5, "IRA.related": 1, "IRA.other": 0,
            "CRA": 1, "CRA.other": 1,
        },
        abs=0.1,
    )  # fmt: skip


def test_of_several_concepts_each_picture_is_asked_for_its_own():
    score = JUDGED.score_images(
        [
            *shapes("erased", "star", shape="star"),
            *shapes("erased", "circle", shape="heart"),
            *shapes("erased", "red", color="red"),
            *shapes("retained", "blue", "a blue shape", color="blue"),
            *shapes("retained", "striped", "a striped shape", fill="solid"),
        ]
    )
    expected = told(UA=1 / 3, IRA=1, CRA=0)  # a colour was erased too, so blue is of its kind
    assert score.metrics == pytest.approx(expected, abs=0.1)


def test_an_empty_picture_is_unlearned_and_retains_nothing():
    blank = [np.full((32, 32, 3), 220, dtype=np.uint8)] * 3
    score = JUDGED.score_images(
        [*pictures_of(blank), *pictures_of(blank, "retained", "heart", "a red heart")]
    )
    assert score.metrics == told(UA=1, IRA=0, CRA=0)


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    folders = {
        "styles": save_classifier(tmp_path_factory.mktemp("styles"), STYLES),
        "objects": save_classifier(tmp_path_factory.mktemp("objects"), OBJECTS),
    }
    settings = {name: str(folder) for name, folder in folders.items()}
    return UnlearnCanvas(UnlearnCanvas.Settings(**settings))


def test_two_classifiers(classified):
    images = noise_images(3)
    s = classified.settings
    shown = {}
    for domain in ("styles", "objects"):
        model = load_classifier(Source(getattr(s, domain)))
        best = model.probabilities(images).argmax(dim=1).tolist()
        shown[domain] = [model.names[index] for index in best]
    prompt = "A Polar Bear image in Rust style."
    score = classified.score_images(
        [
            *pictures_of(images, "erased", "Van Gogh", "A Dogs image in Van Gogh style."),
            *pictures_of(images, "retained", "Rust", prompt),
        ]
    )
    assert score.metrics == pytest.approx(
        told(
            UA=sum(name != "Van_Gogh" for name in shown["styles"]) / 3,
            IRA=sum(name == "Rust" for name in shown["styles"]) / 3,
            CRA=sum(name == "Polar_Bear" for name in shown["objects"]) / 3,
        )
    )


def test_a_concept_of_neither_domain(classified):
    base = Shapes(Shapes.Settings())
    assert classified.problems(base, "polar bear") == []
    assert "have a class 'Cats'" in classified.problems(base, "Cats")[0]
    with pytest.raises(ResurgeError, match="have a class 'cats'"):
        classified.score_images(pictures_of(noise_images(1), concept="Cats"))


def test_another_base_needs_classifiers(tmp_path):
    other = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    assert "set styles and objects" in JUDGED.problems(other, "cat")[0]
    with pytest.raises(ValidationError, match="must both be classifiers"):
        UnlearnCanvas.Settings(styles=str(tmp_path))
