"""The command line: one subcommand per stage, and show, list, validate, track, table, report."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

from workbench import dag, failure, files, resolve, serve
from workbench.record import Cell, RecordError
from workbench.sections import STAGES, Stage

BENCHMARKS = ("gemm", "conv", "throughput")


def main() -> None:
    """Run a subcommand, a stage in the server of WORKBENCH_SERVER where one answers."""
    given = sys.argv[1:]
    address = os.environ.get("WORKBENCH_SERVER")
    status = None
    if address and given and given[0] in STAGES:
        status = serve.ask(Path(address), given)
    sys.exit(run(given) if status is None else status)


def run(given: list[str]) -> int:
    """The exit status of a subcommand; an error of the user's is one line and status 1."""
    arguments = _parser().parse_args(given)
    try:
        arguments.run(arguments)
    except _errors() as error:
        print(f"workbench {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("workbench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function, text: str) -> argparse.ArgumentParser:  # noqa: ANN001
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=function)
        return added

    for stage in STAGES:
        added = command(stage, _stage, f"run stage {stage} of one cell")
        added.add_argument("network")
        added.add_argument("--treatment", default="dense" if stage == "dense" else "2to4")
        added.add_argument("--seed", type=int, default=0)
        added.add_argument("--threads", type=int, default=1, help="CPU threads")
        added.add_argument("--no-track", action="store_true", help="do not mirror to MLflow")
    added = command("run", _run, "run all stages that a study needs of a network, in one process")
    added.add_argument("network")
    added.add_argument("--study", default="accuracy")
    added.add_argument("--seed", type=int, default=0)
    added.add_argument("--threads", type=int, default=1, help="CPU threads")
    added.add_argument("--no-track", action="store_true", help="do not mirror to MLflow")
    added = command("export", _export, "a finished stage's weights in one file, 2:4 compressed")
    added.add_argument("network")
    added.add_argument("--treatment", default="2to4")
    added.add_argument("--stage", default="retrain", choices=("prune", "retrain", "quantize"))
    added.add_argument("--seed", type=int, default=0)
    added.add_argument("--out", type=Path, required=True, help="the file to write")
    added = command("serve", _serve, "fork stages for the process PARENT, libraries loaded once")
    added.add_argument("parent", type=int, help="the pipeline's process; the server ends with it")
    added = command("show", _show, "the resolved spec of a network, each value with its file")
    added.add_argument("network")
    added.add_argument("--treatment", default="2to4")
    added.add_argument("--json", action="store_true")
    added = command("list", _list, "the networks: tasks, metric, parameters, eligible weights")
    added.add_argument("--json", action="store_true")
    added = command("explain", _explain, "which weights of a network a rule prunes, and why not")
    added.add_argument("network")
    added.add_argument("--rule", default="c4", help="c4, c4+ or asp")
    added.add_argument("--json", action="store_true")
    added = command("verify", _verify, "whether the weights of a checkpoint are 2:4, of any tool")
    added.add_argument("file", type=Path)
    added.add_argument("--masks", type=Path, help="a mask file that the weights must follow")
    command("validate", _validate, "check every spec, study and talk table without running")
    command("track-init", _track_init, "make the MLflow store and the experiment of a scale")
    command("track", _track, "mirror records that MLflow lacks")
    added = command("table", _table, "a study's table from records")
    added.add_argument("study")
    added.add_argument("--networks", default=",".join(resolve.names("networks")))
    added.add_argument("--seeds", default="")
    added.add_argument("--root", type=Path, default=Path(dag.RESULTS), help="results folder")
    added.add_argument("--readme", action="store_true", help="show it in README.md too")
    added = command("claims", _claims, "every number that the talk prints, with ours, as a table")
    added.add_argument("--root", type=Path, default=Path(dag.RESULTS), help="results folder")
    added = command("bench", _bench, "time the kernels on this GPU, beside the best libraries")
    added.add_argument("what", choices=BENCHMARKS)
    added.add_argument("--only", action="append", default=[], help="a group of shapes; repeatable")
    added.add_argument("--dtypes", default="", help="as float16,int8; else all of the benchmark")
    added = command("bench-table", _bench_table, "the table and the plot of a benchmark")
    added.add_argument("what", choices=BENCHMARKS)
    added = command("calibrators", _calibrators, "what each calibrator makes of a network's INT8")
    added.add_argument("network")
    added.add_argument("--root", type=Path, default=Path(dag.RESULTS), help="results folder")
    added = command("onnx", _onnx, "write a network's INT8 with Q/DQ nodes to an ONNX file")
    added.add_argument("network")
    added.add_argument("file", type=Path)
    added.add_argument("--treatment", default="2to4")
    added.add_argument("--seed", type=int, default=0)
    added = command("report", _report, "the html page of a scale")
    added.add_argument("--studies", required=True)
    added.add_argument("--name", default="report", help="of the page")
    added.add_argument("--networks", default=",".join(resolve.names("networks")))
    added = command("trim", _trim, "remake the small data sets of experiments/data")
    added.add_argument("--pack", type=Path, required=True, help="the folder of the data pack")
    for name in (
        *STAGES,
        "run",
        "export",
        "show",
        "explain",
        "track-init",
        "track",
        "table",
        "report",
        "claims",
        "bench",
        "bench-table",
        "calibrators",
        "onnx",
    ):
        commands.choices[name].add_argument(
            "--scale",
            default={"show": "full", "explain": "full", "bench": "lite", "bench-table": "lite"}.get(
                name, "smoke"
            ),
            help="smoke, lite or full",
        )
    return parser


def _errors() -> tuple[type[Exception], ...]:
    loaded = [resolve.SpecError, RecordError, files.FileError, dag.ConfigError, serve.ServeError]
    for module, names in (
        ("workbench.data.source", ("DataError",)),
        ("workbench.stages.work", ("StageError",)),
        ("workbench.training.loop", ("TrainingError",)),
        ("workbench.training.average", ("AverageError",)),
        ("workbench.training.sharing", ("SharingError",)),
        ("workbench.quant.layers", ("QuantError",)),
        ("workbench.sparsity.names", ("SparsityError",)),
        ("workbench.track", ("TrackError",)),
        ("sparse24.bench", ("BenchError",)),
        ("sparse24.build", ("BuildError",)),
    ):
        if module in sys.modules:
            loaded += [getattr(sys.modules[module], name) for name in names]
    return tuple(loaded)


def _stage(arguments: argparse.Namespace) -> None:
    _attempt(_cell(arguments, arguments.command), arguments)


def _run(arguments: argparse.Namespace) -> None:
    wanted = dag.study_cells(
        arguments.study, arguments.scale, [arguments.network], [arguments.seed]
    )
    cells = list(dict.fromkeys(step for end in wanted for step in dag.chain(end)))
    due = dag.due(cells, Path(dag.RESULTS))
    for cell in cells:
        if cell in due:
            _attempt(cell, arguments)
        else:
            print(f"{dag.record_path(cell)}: is current", flush=True)


def _attempt(cell: Cell, arguments: argparse.Namespace) -> None:
    """Run a cell; an error is kept for the tables, which have a dash in its place."""
    folder = Path(dag.RESULTS, cell.folder)
    try:
        _run_cell(cell, arguments)
    except _errors() as error:
        with contextlib.suppress(
            OSError
        ):  # a folder that cannot be written: the error itself tells
            failure.remember(folder, error)
        raise
    failure.forget(folder)


def _run_cell(cell: Cell, arguments: argparse.Namespace) -> None:
    import torch

    from workbench import stages

    torch.set_num_threads(arguments.threads)
    work = _work(cell)
    if not work.accelerator.is_main_process:  # another of `accelerate launch`; the main one writes
        stages.run(work)
    else:
        with files.alone(work.out):
            _recorded(work, arguments.no_track)
            work.forget_resume()
    work.accelerator.wait_for_everyone()  # the next stage reads what the main process wrote


def _recorded(work, without_mirror: bool) -> None:  # noqa: ANN001 - a Work, which imports torch
    from workbench import stages

    path = work.out / "record.json"
    if without_mirror:
        stages.run(work).write(path)
        return
    from workbench import track

    task = work.spec.phases[work.spec.last_phase].task
    lock = work.results / work.cell.scale / work.cell.network / track.LOCK
    with track.following(work.cell, task, work.digest, lock) as mirror:
        work.log = mirror.log
        record = stages.run(work).model_copy(update={"mlflow_run_id": mirror.run_id})
        record.write(path)
        mirror.finish(record, path)


def _export(arguments: argparse.Namespace) -> None:
    from workbench.stages.export import export

    print(export(_work(_cell(arguments, arguments.stage)), arguments.out))


def _serve(arguments: argparse.Namespace) -> None:
    address = os.environ.get("WORKBENCH_SERVER")
    if not address:
        raise serve.ServeError("WORKBENCH_SERVER is not set; give the path of the socket to make")
    serve.serve(Path(address), arguments.parent, run)


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


def _verify(arguments: argparse.Namespace) -> None:
    from workbench import sparsity

    masks = sparsity.Masks.load(arguments.masks) if arguments.masks else None
    print(sparsity.verify_file(arguments.file, masks))


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


def _track_init(arguments: argparse.Namespace) -> None:
    from workbench import track

    out = Path(dag.RESULTS, arguments.scale, "tracking.json")
    track.init(arguments.scale, out)


def _track(arguments: argparse.Namespace) -> None:
    from workbench import track

    paths = sorted(Path(dag.RESULTS, arguments.scale).glob("*/seed*/*/*/record.json"))
    print(f"{track.mirror_records(paths)} of {len(paths)} records mirrored to {track.store()}")


def _table(arguments: argparse.Namespace) -> None:
    from workbench import report

    seeds = dag.seeds({"seeds": arguments.seeds}, arguments.scale)
    networks = arguments.networks.split(",")
    report.table(arguments.study, arguments.scale, networks, seeds, arguments.root)
    if arguments.readme:
        report.readme_block(arguments.scale, arguments.study, arguments.root)


def _claims(arguments: argparse.Namespace) -> None:
    from workbench import report

    print(report.write_claims(arguments.scale, arguments.root))


def _bench(arguments: argparse.Namespace) -> None:
    from workbench import bench

    out = Path(dag.RESULTS, arguments.scale, "measurements", f"{arguments.what}.json")
    if arguments.what == "gemm":
        bench.gemm(out, arguments.only, arguments.dtypes)
    elif arguments.what == "conv":
        bench.conv(out, arguments.only, arguments.dtypes)
    else:
        bench.throughput(out)


def _bench_table(arguments: argparse.Namespace) -> None:
    from workbench import report

    report.bench_table(arguments.what, arguments.scale)


def _calibrators(arguments: argparse.Namespace) -> None:
    from workbench import report

    resolve.known("networks", arguments.network)
    print(report.markdown(report.calibrators(arguments.network, arguments.scale, arguments.root)))


def _onnx(arguments: argparse.Namespace) -> None:
    from workbench.stages.to_onnx import onnx_of

    proto = onnx_of(_work(_cell(arguments, "quantize")))
    with files.whole(arguments.file) as part:
        part.write_bytes(proto.SerializeToString())
    print(f"{arguments.file}: {arguments.file.stat().st_size:,} bytes")


def _cell(arguments: argparse.Namespace, stage: Stage) -> Cell:
    return Cell(
        scale=arguments.scale,
        network=arguments.network,
        treatment=arguments.treatment,
        stage=stage,
        seed=arguments.seed,
    )


def _work(cell: Cell):  # noqa: ANN202 - a Work of workbench.stages, which imports torch
    spec = dag.spec_of(cell.network, cell.treatment, cell.scale)
    from workbench import stages

    data = Path(os.environ.get("WORKBENCH_DATA", "data"))
    return stages.Work(cell, spec, Path(dag.RESULTS), data)


def _report(arguments: argparse.Namespace) -> None:
    from workbench import report

    networks, studies = arguments.networks.split(","), arguments.studies.split(",")
    report.page(arguments.scale, studies, networks, name=arguments.name)


def _trim(arguments: argparse.Namespace) -> None:
    from workbench.data.trim import trim

    print(json.dumps(trim(arguments.pack, resolve.EXPERIMENTS / "data"), indent=1))


if __name__ == "__main__":
    main()
