"""What a method says of its golden numbers is true."""

from pathlib import Path

import pytest

from orchestrator.core.registry import find, registry

CASES = Path(__file__).parent / "golden"
METHODS = [name for name, cls in registry("unlearner").items() if cls.changes and cls.is_method]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_of_it_is_pinned_if_and_only_if_something_is(name):
    file = CASES / f"test_{name}.py"
    is_tested = file.exists() and "released(" in file.read_text("utf-8")
    assert bool(find("unlearner", name).golden) == is_tested
