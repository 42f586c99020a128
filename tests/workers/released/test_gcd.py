import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from orchestrator.core.errors import ResurgeError
from tests.workers.metrics.tiny_models import noise_images
from workers.data.pinned import Source
from workers.judging.classes import class_ids, load_classifier
from workers.released.gcd import SIDE_PX, convert, in_transformers_names, read_labels

DEPTHS = (3, 4, 6, 3)
PEOPLE = ("Aaron_Paul_[m.03qj7gf]", "Adele_[m.02z4b_8]", "Chris_Young_[g.1]", "Chris_Young_[m.2]")


@pytest.fixture(scope="module")
def state():
    """A ResNet-50 of random numbers by torchvision's names, with two linear layers."""
    generator = torch.Generator().manual_seed(0)

    def conv(out, into, side):
        scale = (2 / (into * side * side)) ** 0.5
        return torch.randn(out, into, side, side, generator=generator) * scale

    def norm(name, width):
        return {
            f"{name}.weight": 0.5 + torch.rand(width, generator=generator),
            f"{name}.bias": torch.randn(width, generator=generator) * 0.1,
            f"{name}.running_mean": torch.randn(width, generator=generator) * 0.1,
            f"{name}.running_var": 0.5 + torch.rand(width, generator=generator),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }

    found = {"conv1.weight": conv(64, 3, 7), **norm("bn1", 64)}
    into = 64
    for stage, depth in enumerate(DEPTHS, 1):
        width = 64 * 2 ** (stage - 1)
        for block in range(depth):
            at = f"layer{stage}.{block}"
            shapes = ((width, into, 1), (width, width, 3), (4 * width, width, 1))
            for number, (out, inner, side) in enumerate(shapes, 1):
                found[f"{at}.conv{number}.weight"] = conv(out, inner, side)
                found |= norm(f"{at}.bn{number}", out)
            if block == 0:
                found[f"{at}.downsample.0.weight"] = conv(4 * width, into, 1)
                found |= norm(f"{at}.downsample.1", 4 * width)
            into = 4 * width
    for name, out, inner in (("fc1", 16, 2048), ("fc2", len(PEOPLE), 16)):
        found[f"{name}.weight"] = torch.randn(out, inner, generator=generator) * inner**-0.5
        found[f"{name}.bias"] = torch.randn(out, generator=generator)
    return found


def resnet(state, x):
    """He et al., 2016, with the stride in the 3 x 3 convolution; (n, 3, h, w) -> (n, classes)."""

    def norm(name, x):
        own = (
            state[f"{name}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, *own, training=False)

    x = functional.conv2d(x, state["conv1.weight"], stride=2, padding=3)
    x = functional.max_pool2d(norm("bn1", x).relu(), 3, stride=2, padding=1)
    for stage, depth in enumerate(DEPTHS, 1):
        for block in range(depth):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(f"{at}.bn1", functional.conv2d(x, state[f"{at}.conv1.weight"])).relu()
            y = functional.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1)
            y = norm(f"{at}.bn2", y).relu()
            y = norm(f"{at}.bn3", functional.conv2d(y, state[f"{at}.conv3.weight"]))
            if block == 0:
                x = functional.conv2d(x, state[f"{at}.downsample.0.weight"], stride=stride)
                x = norm(f"{at}.downsample.1", x)
            x = (x + y).relu()
    x = x.mean(dim=(2, 3))
    x = functional.linear(x, state["fc1.weight"], state["fc1.bias"])
    return functional.linear(x, state["fc2.weight"], state["fc2.bias"])


def as_released(state):
    """The layers numbered, as the detector's checkpoint has them, and its loss's tensors."""
    numbers = {"conv1": 0, "bn1": 1, **{f"layer{n}": n + 3 for n in range(1, 5)}}
    found = {"center_loss_criterion.centers": torch.zeros(len(PEOPLE), 16)}
    for name, value in state.items():
        top, _, rest = name.partition(".")
        found[f"model.stem.{numbers[top]}.{rest}" if top in numbers else f"model.{name}"] = value
    return found


@pytest.fixture
def labels(tmp_path):
    lines = [f"{person},{number}" for number, person in enumerate(PEOPLE)]
    (tmp_path / "labels.csv").write_text("\n".join(["Labels,Index", *lines]) + "\n")
    return tmp_path / "labels.csv"


def test_a_converted_pickle_says_what_the_detector_says(state, labels, tmp_path):
    checkpoint = tmp_path / "best_model_states.pkl"
    torch.save({"epoch": 3, "model_state": as_released(state)}, checkpoint)
    folder = tmp_path / "models" / "gcd"
    with pytest.raises(ResurgeError, match="is a pickle; say --allow-pickle"):
        convert(checkpoint, labels, folder, allow_pickle=False)
    assert not folder.exists()
    assert convert(checkpoint, labels, folder, allow_pickle=True) == len(PEOPLE)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    (face,) = noise_images(1, side_px=100)
    face = face[:80]  # not square, and scaled to a square all the same
    scaled = np.array(Image.fromarray(face).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(scaled).permute(2, 0, 1)[None] / 255
    classifier = load_classifier(Source(str(folder)))
    expected = resnet(state, pixels).softmax(dim=1)
    torch.testing.assert_close(classifier.probabilities([face]), expected, atol=1e-4, rtol=1e-3)
    assert classifier.names[:2] == ("Aaron Paul", "Adele")
    assert class_ids(classifier.names, "aaron paul", {}) == {0}
    assert class_ids(classifier.names, "Chris Young", {}) == {2, 3}


def test_all_names_give_the_same_tensors(state):
    plain, released = (in_transformers_names("x", s) for s in (state, as_released(state)))
    assert plain.keys() == released.keys()
    assert all(torch.equal(plain[name], released[name]) for name in plain)
    one = {n: v for n, v in state.items() if not n.startswith("fc")}
    one |= {"fc.weight": plain["classifier.1.weight"], "fc.bias": plain["classifier.1.bias"]}
    single = in_transformers_names("x", one)
    assert torch.equal(single["classifier.1.weight"], plain["classifier.1.weight"])


def changed(state, **changes):
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {"x": torch.ones(1)}, "no checkpoint of the celebrity detector"),
        (lambda s: {n: v for n, v in s.items() if n != "fc2.bias"}, r"missing: fc2\.bias"),
        (lambda s: changed(s, fc1__weight=torch.ones(3, 2048)), "does not fit the layer before"),
        (lambda s: changed(s, bn1__bias=torch.full((64,), torch.nan)), "bn1.bias is not finite"),
        (lambda s: {n: v for n, v in s.items() if "layer4.2" not in n}, "missing: resnet.encoder"),
        (lambda s: changed(s, layer1__0__conv4__weight=torch.ones(1)), "not the model's"),
        (lambda s: changed(s, bn1__bias=torch.ones(3)), "of another shape: resnet.embedder"),
        (
            lambda s: {n: v[:3] if n.startswith("fc2") else v for n, v in s.items()},
            "knows 3 classes",
        ),
    ],
)
def test_another_checkpoint_is_refused(state, labels, tmp_path, change, said):
    file, folder = tmp_path / "other.safetensors", tmp_path / "gcd"
    save_file(change(state), file)
    with pytest.raises(ResurgeError, match=said):
        convert(file, labels, folder, allow_pickle=False)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Labels,Index\n", "at least one"),
        ("Labels,Index\na,0\na,1\n", "each class once"),
        ("Labels,Index\nb,0\na,1\n", "not 0, 1, 2"),
        ("Labels,Index\na,first\n", "must be a CSV file"),
        ("Labels,Index\na\n", "must be a CSV file"),
    ],
)
def test_other_labels_are_refused(tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ResurgeError, match=said):
        read_labels(tmp_path / "labels.csv")


class Surprise:
    """What a pickle may hold: something to run."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"model_state": Surprise()}, "weights-only reader cannot read"),
        ({"model_state": {"a": 1}}, "must hold a state dict"),
        ([1], "holds list"),
    ],
)
def test_of_a_pickle_only_tensors_are_read(labels, tmp_path, capsys, held, said):
    torch.save(held, tmp_path / "states.pkl")
    with pytest.raises(ResurgeError, match=said):
        convert(tmp_path / "states.pkl", labels, tmp_path / "gcd", allow_pickle=True)
    assert "run" not in capsys.readouterr().out


def test_nothing_is_written_over(labels, tmp_path):
    (tmp_path / "gcd").mkdir()
    (tmp_path / "gcd" / "mine.txt").write_text("mine")
    with pytest.raises(ResurgeError, match="is there already"):
        convert(tmp_path / "states.pkl", labels, tmp_path / "gcd", allow_pickle=True)
