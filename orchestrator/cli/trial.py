"""`resurge reproduce` and `resurge diff`: one trial made again, two compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from orchestrator.cli.common import EXIT_DONE, EXIT_FAILED, HomeOption, out
from orchestrator.home import Home


def reproduce(
    trial: Annotated[
        str, typer.Argument(metavar="RUN", help="An MLflow run's id, or a trial's first digits.")
    ],
    from_base: Annotated[
        bool, typer.Option("--from-base", help="Make everything again, not the last edit only.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show what made the numbers; make nothing again.")
    ] = False,
    home: HomeOption = None,
) -> None:
    """Show everything that made a trial's numbers, make them again, and compare.

    Begins from the nearest ancestor whose weights are in the store and works beside the store.
    Exit code 0: every number is identical; 1: some differ (on another machine or with other
    versions that is expected, and the difference is printed); 2: bad input.
    """
    from orchestrator.audit.find_trial import find_trial
    from orchestrator.audit.reproduce import reproduce as make_again
    from orchestrator.cli.show.trial import show_origin, show_reproduction

    found = find_trial(trial, Home.find(home))
    show_origin(found, out)
    if show:
        return
    result = make_again(found, from_base, out)
    show_reproduction(result, out)
    raise typer.Exit(EXIT_DONE if result.is_identical else EXIT_FAILED)


def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="As in `resurge reproduce`.")],
    other: Annotated[str, typer.Argument(metavar="B", help="The trial to compare it with.")],
    home: HomeOption = None,
) -> None:
    """Show what differs between two trials, and what that changed."""
    from orchestrator.audit.find_trial import find_trial
    from orchestrator.cli.show.trial import show_difference

    place = Home.find(home)
    show_difference(find_trial(one, place), find_trial(other, place), out)


COMMANDS: Mapping[str, Callable[..., None]] = {"reproduce": reproduce, "diff": diff}
