import pytest
from PIL import Image
from pydantic import ValidationError

from tests.workers.metrics.tiny_models import noise_images, pictures_of
from workers.bases.diffusers import Diffusers
from workers.bases.shapes import Shapes
from workers.judging.nude_detector import CLASSES, FLOOR, detect
from workers.metrics.nudity import Nudity

FACES = ("FACE_FEMALE", "FACE_MALE")


def metric(**settings):
    return Nudity(Nudity.Settings(**settings))


@pytest.fixture(scope="module")
def package():
    """NudeNet's own detector."""
    nudenet = pytest.importorskip("nudenet", reason="the extra `nudenet` is not installed")
    return nudenet.NudeDetector()


@pytest.fixture(scope="module")
def photographs(package):
    """Real pictures from scikit-image's wheel: a person, upright, wide and cut; a cat; coffee."""
    data = pytest.importorskip("skimage.data", reason="the extra `faces` is not installed")
    person = data.astronaut()
    return [person, person[:300], person[:, 60:400], data.chelsea(), data.coffee()]


def theirs(package, image):
    return [
        (found["class"], found["score"], found["box"]) for found in package.detect(image.copy())
    ]


# The package turns the array that it is given around twice: RGB arrives at the network as RGB, and
# what it reads from a file by itself, which is BGR, as BGR.
@pytest.mark.parametrize(("channels", "order"), [("rgb", 1), ("bgr", -1)])
def test_boxes_are_the_packages_own(package, photographs, channels, order):
    ours = detect(photographs, channels)
    assert sum(map(len, ours)) >= 3
    for image, found in zip(photographs, ours, strict=True):
        expected = theirs(package, image[..., ::order])
        assert [one.label for one in found] == [label for label, _, _ in expected]
        for one, (_, score, (x, y, width, height)) in zip(found, expected, strict=True):
            assert one.score == pytest.approx(score, abs=0.02)
            assert one.box == pytest.approx((x, y, x + width, y + height), abs=4)


def test_a_file_arrives_reversed_in_the_package(package, photographs, tmp_path):
    """Why the network is run here: the same picture, as a file, gets the scores of bgr."""
    path = tmp_path / "person.png"
    Image.fromarray(photographs[0]).save(path)
    by_file = package.detect(str(path))[0]["score"]
    scores = {c: detect(photographs[:1], c)[0][0].score for c in ("rgb", "bgr")}
    assert by_file == pytest.approx(scores["bgr"], abs=0.02)
    assert abs(by_file - scores["rgb"]) > 0.05


def test_the_threshold_and_the_classes_decide(package, photographs):
    pictures = pictures_of(photographs, concept="a person")
    score = metric(classes=FACES).score_images(pictures)
    assert score.values == [1, 1, 1, 0, 0]
    assert score.metrics == {
        "erased": 0.6,
        "boxes.FACE_FEMALE": 3,
        "boxes.FACE_MALE": 0,
    }
    assert sum(metric(classes=FACES, threshold=0.99).score_images(pictures).values) == 0
    assert sum(metric().score_images(pictures).values) == 0


def test_only_the_erased_concepts_boxes_are_counted(package, photographs):
    pictures = pictures_of(photographs, "retained", "a person")
    score = metric(classes=FACES).score_images(pictures)
    assert score.metrics["boxes.FACE_FEMALE"] == 0
    assert score.metrics["retained"] == 0.6


def test_nothing_is_on_noise(package):
    assert detect(noise_images(2, side_px=64), "rgb") == [[], []]


def test_the_floor_is_the_packages(package, photographs):
    scores = [one.score for found in detect(photographs, "rgb") for one in found]
    assert min(scores) >= FLOOR
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.25"):
        metric(threshold=0.2)


def test_a_class_that_there_is_not():
    with pytest.raises(ValidationError, match="unknown class 'FACE'; did you mean 'FACE_"):
        metric(classes=("FACE",))
    assert set(metric().settings.classes) < set(CLASSES)


def test_the_bundled_world_has_no_people(package):
    assert "draws none" in metric().problems(Shapes(Shapes.Settings()), "star")[0]
    other = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    assert metric().problems(other, "nudity") == []


def test_without_the_package_there_is_a_hint(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    other = Diffusers(Diffusers.Settings(source="owner/name", revision="0" * 40))
    assert "pip install 'resurge[nudenet]'" in metric().problems(other, "nudity")[0]


def test_the_weights_are_part_of_the_identity(package):
    assert len(metric().fingerprint()) == 64
