"""Nothing is imported from the folder in which the user stands.

It holds the user's own files, and one called `numpy.py` or `workers.py` there is not meant. This
module comes before all others, and imports only what Python has loaded by then.
"""

import importlib.util
import os
import sys


def leave_out_this_folder(is_module: bool = False) -> None:
    """Take it from this process's search path, and keep it from every process that is started.

    Args:
        is_module: whether this is `python -m`, which puts the folder first.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    folders = {"", os.path.realpath(os.curdir)}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    named = [entry for entry in given if entry]
    if is_module and not sys.flags.safe_path and os.path.realpath(sys.path[0]) in folders:
        del sys.path[0]
    if named and "" in given:
        # `PYTHONPATH=$PYTHONPATH:…` with a variable that is empty means this folder as well.
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        if folders.isdisjoint(map(os.path.realpath, named)):
            sys.path[:] = [one for one in sys.path if os.path.realpath(one) not in folders]
    if importlib.util.find_spec("workers") is None:
        # It was the only place where we are, a checkout that is not installed: then the last one.
        sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
