"""The commands about MLflow: track-init and track."""

import argparse
from pathlib import Path

from workbench import dag
from workbench.cli import arguments as shared


def register(commands: shared.Commands) -> None:
    """Add track-init and track."""
    added = shared.add(
        commands, "track-init", _track_init, "make the MLflow store and the experiment of a scale"
    )
    shared.add_scale(added)

    added = shared.add(commands, "track", _track, "mirror records that MLflow lacks")
    shared.add_scale(added)


def _track_init(arguments: argparse.Namespace) -> None:
    from workbench import track

    track.init(arguments.scale, Path(dag.RESULTS, arguments.scale, "tracking.json"))


def _track(arguments: argparse.Namespace) -> None:
    from workbench import track

    paths = sorted(Path(dag.RESULTS, arguments.scale).glob("*/seed*/*/*/record.json"))
    print(f"{track.mirror_records(paths)} of {len(paths)} records mirrored to {track.store()}")
