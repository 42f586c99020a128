"""What a worker's process loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import workers

LOADED = """
import sys
from orchestrator.executors.worker import load_workers
sys.path.insert(0, sys.argv[1])
before = list(sys.path)
load_workers()
assert sys.path == before
import workers.runner
print(workers.runner.__file__)
"""


def test_another_package_of_that_name_in_front_is_not_taken_for_ours(tmp_path: Path) -> None:
    other = tmp_path / "workers"
    other.mkdir()
    (other / "__init__.py").write_text("raise ImportError('the user has workers too')")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == Path(workers.__file__).parent
