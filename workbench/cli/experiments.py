"""The commands about experiments/: show, list, explain, validate and trim."""

import argparse
import json
from pathlib import Path

from workbench import dag, resolve
from workbench.cli import arguments as shared
from workbench.sections import STAGES


def register(commands: shared.Commands) -> None:
    """Add show, list, explain, validate and trim."""
    added = shared.add(
        commands, "show", _show, "the resolved spec of a network, each value with its file"
    )
    added.add_argument("network")
    added.add_argument("--treatment", default="2to4")
    added.add_argument("--json", action="store_true")
    shared.add_scale(added, default="full")

    added = shared.add(
        commands, "list", _list, "the networks: tasks, metric, parameters, eligible weights"
    )
    added.add_argument("--json", action="store_true")

    added = shared.add(
        commands, "explain", _explain, "which weights of a network a rule prunes, and why not"
    )
    added.add_argument("network")
    added.add_argument("--rule", default="c4", help="c4, c4+ or asp")
    added.add_argument("--json", action="store_true")
    shared.add_scale(added, default="full")

    shared.add(
        commands, "validate", _validate, "check every spec, study and talk table without running"
    )

    added = shared.add(commands, "trim", _trim, "remake the small data sets of experiments/data")
    added.add_argument("--pack", type=Path, required=True, help="the folder of the data pack")


def _show(arguments: argparse.Namespace) -> None:
    resolved = resolve.resolve(arguments.network, arguments.treatment, arguments.scale)
    if arguments.json:
        shown = {"spec": resolved.spec.model_dump(mode="json"), "origins": resolved.origins}
        print(json.dumps(shown, indent=1))
        return
    rows = resolve.leaves(resolved.spec.model_dump(mode="json"))
    width = max(len(f"{key}: {value}") for key, value in rows)
    for key, value in rows:
        print(f"{f'{key}: {value}':<{min(width, 88)}}  # {resolved.origin(key)}")


def _list(arguments: argparse.Namespace) -> None:
    from workbench import inventory

    rows = [inventory.row(name) for name in resolve.names("networks")]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        shares = [f"{row[f'eligible_{r}'] / row['parameters']:8.2%}" for r in inventory.RULES]
        print(
            f"{row['network']:<26}{row['metric']:<20}{row['parameters'] / 1e6:>8.2f} M"
            f"{''.join(shares)}  {' > '.join(row['tasks'])}"
        )


def _explain(arguments: argparse.Namespace) -> None:
    from workbench import inventory

    print(inventory.explained(arguments.network, arguments.scale, arguments.rule, arguments.json))


def _validate(_: argparse.Namespace) -> None:
    from workbench.report import talk

    count = 0
    for network in resolve.names("networks"):
        talk.printed(dag.spec_of(network, "dense", "full").talk)
        for treatment in resolve.names("treatments"):
            for scale in resolve.names("scales"):
                for stage in STAGES:
                    dag.stage_digest(network, treatment, scale, stage)
                count += 1
    for study in resolve.names("studies"):
        resolve.study(study)
    print(f"{count} specs and {len(resolve.names('studies'))} studies are valid")


def _trim(arguments: argparse.Namespace) -> None:
    from workbench.data.trim import trim

    print(json.dumps(trim(arguments.pack, resolve.EXPERIMENTS / "data"), indent=1))
