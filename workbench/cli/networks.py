"""The commands about whole networks' speed: predict, without a GPU, and bench network, on one."""

import argparse
import json
from pathlib import Path

from workbench import dag
from workbench.cli import arguments as shared
from workbench.record import Cell
from workbench.resolve import SpecError


def register(commands: shared.Commands) -> None:
    """Add predict."""
    added = shared.add(
        commands, "predict", _predict, "what a network can gain from 2:4, before any training"
    )
    added.add_argument("network")
    added.add_argument("--batch", default="256", help="as 1,32,256; several give a line for each")
    added.add_argument("--device", default="h100", help="of experiments/bench/devices.yaml")
    added.add_argument("--precision", default="fp16", help="fp16, int8 or fp8")
    added.add_argument(
        "--dense-groups",
        action="store_true",
        help="convolutions of several groups stay dense, as in engines without kernels for them",
    )
    added.add_argument("--json", action="store_true")
    shared.add_scale(added, default="lite")


def bench_network(arguments: argparse.Namespace, out: Path) -> None:
    """Measure whole networks; the metric of checkpoints of the scale, where there are some."""
    from workbench.bench import metric, network

    def judged(name: str, precision: str) -> dict[str, object]:
        cell = Cell(scale=arguments.scale, network=name, treatment="2to4", stage="retrain", seed=0)
        work = shared.work(cell)
        return metric.metric(work, precision)

    sizes = batches(arguments.batch)
    network.network(out, arguments.only, arguments.dtypes, sizes, arguments.candidates, judged)


def batches(text: str) -> list[int]:
    """The batches of a text like 1,32; SpecError for what is no number above 0."""
    try:
        found = [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise SpecError(f"batch {text!r}: batches are whole numbers, as in 1,32,256") from error
    if any(batch < 1 for batch in found):
        raise SpecError(f"batch {text!r}: batches are above 0, as in 1,32,256")
    return found


def _predict(arguments: argparse.Namespace) -> None:
    sizes = batches(arguments.batch)
    if not sizes:
        raise SpecError("batch '': give some, as in 1,32,256")
    from workbench import report, workload
    from workbench.predict import device, network, text

    card = device(arguments.device)
    card.rate(arguments.precision)
    work = workload.workload(arguments.network)
    folder = Path(dag.RESULTS, arguments.scale, "measurements")
    given = arguments.device, arguments.precision, folder, arguments.dense_groups
    found = [network.predict(work, batch, *given) for batch in sizes]
    known = report.beside(folder, card.records, arguments.network, arguments.precision)
    if arguments.json:
        told = [text.as_data(each) | {"beside": known} for each in found]
        print(json.dumps(told, indent=1))
    else:
        shown = text.as_text(found[0]) if len(found) == 1 else text.as_lines(found)
        print("\n".join([shown, "", *known]))
