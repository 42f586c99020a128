import pytest
import torch

from orchestrator.core.errors import ResurgeError
from workers.diffusion.text import embed
from workers.erasure.materials import need_caption_sums
from workers.interfaces.material import Work

CAPTIONS = ["a star", "a red circle", ""]


def make(pipe, need, calls=None):
    report = (lambda *call: calls.append(call[:2])) if calls is not None else lambda *_: None
    made = need.plugin.make(Work(pipe, need.asked, None, report))
    return need.plugin.read(made.tensors, need.asked), made.numbers


def outer_products(pipe, captions):
    tokens = embed(pipe, captions).flatten(0, 1).double()
    return sum(torch.outer(token, token) for token in tokens)


def test_the_sum_of_every_tokens_outer_product(pipe):
    gram, numbers = make(pipe, need_caption_sums(None, CAPTIONS))
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, outer_products(pipe, CAPTIONS))
    assert numbers["captions"] == 3


def test_more_captions_than_fit_in_a_pass(pipe):
    captions, calls = ["a star", "a circle"] * 40, []
    gram, _ = make(pipe, need_caption_sums(None, captions), calls)
    torch.testing.assert_close(gram, 40 * outer_products(pipe, captions[:2]))
    assert calls == [(64, 80), (80, 80)]


def test_a_files_lines_are_captions_and_blank_ones_are_not(pipe, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a star\n\n  a red circle \n", "utf-8")
    gram, numbers = make(pipe, need_caption_sums(str(path), ["not this"]))
    torch.testing.assert_close(gram, outer_products(pipe, ["a star", "a red circle"]))
    assert numbers["captions"] == 2


def test_what_is_asked_changes_with_the_files_content_and_not_with_its_place(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a star\n", "utf-8")
    other.write_text("a star\n\n", "utf-8")
    asked = [need_caption_sums(str(path), []).plugin.fingerprint() for path in (one, other)]
    assert asked[0] == asked[1]
    other.write_text("a circle\n", "utf-8")
    assert need_caption_sums(str(other), []).plugin.fingerprint() != asked[0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResurgeError, match=r"caption file '.*none\.txt' does not exist"):
        need_caption_sums(str(tmp_path / "none.txt"), []).plugin.fingerprint()


def test_a_file_without_captions_is_named(tmp_path):
    path = tmp_path / "empty.txt"
    path.write_text("\n \n", "utf-8")
    with pytest.raises(ResurgeError, match=r"empty\.txt' has no captions"):
        need_caption_sums(str(path), []).plugin.fingerprint()


def test_a_mark_before_the_text_is_no_part_of_the_first_caption(tmp_path):
    """Nor does a line end where Unicode has a separator within it."""
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffa star\r\na red\u2028circle\n".encode())
    assert need_caption_sums(str(path), []).plugin.captions() == ["a star", "a red\u2028circle"]


def test_a_file_of_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes("a star\na café\n".encode("cp1252"))
    with pytest.raises(ResurgeError, match=r"captions\.txt:2: the byte 0xe9 is not UTF-8"):
        need_caption_sums(str(path), []).plugin.fingerprint()
