"""A cluster's state seen from another machine."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.cluster.clusters_file import Cluster, find_cluster
from orchestrator.core.errors import ResurgeError
from orchestrator.home import Home

FAR_PATIENCE_S = 10


def home_at(home: Path | None, cluster: str | None) -> Home:
    """The local home, or a cluster's as it is seen from here.

    Raises:
        ResurgeError: there is no such cluster, or its store cannot be seen.
    """
    if not cluster:
        return Home.find(home)
    place = entry_at(find_cluster(cluster))
    check_visible(place)
    return place


def entry_at(cluster: Cluster) -> Home:
    """The cluster's store, MLflow and studies; who only looks is not as patient with them."""
    os.environ.setdefault("RESURGE_STORE_PATIENCE_S", str(FAR_PATIENCE_S))
    return cluster.at(Home.find(None))


def check_visible(place: Home) -> None:
    """Raise if the store is a folder that is not here: it would look like an empty one."""
    location = place.store_location()
    if "://" not in location and not Path(location).is_dir():
        raise ResurgeError(
            f"the store {location} of cluster {place.cluster!r} is a folder that is not here. "
            "Unless nothing was ever run there: mount it under the same path, or use a store that "
            "is reached from everywhere (s3://bucket/prefix)"
        )
