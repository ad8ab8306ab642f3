"""The errors that are the user's to mend, and so are shown as one line."""

import sys

from workbench import dag, files, provenance, resolve, serve
from workbench.record import RecordError

# raised by modules that load torch or mlflow: only those that a command has loaded can raise
HEAVY = (
    ("workbench.data.source", "DataError"),
    ("workbench.stages.weights", "StageError"),
    ("workbench.training.loop", "TrainingError"),
    ("workbench.training.average", "AverageError"),
    ("workbench.training.sharing", "SharingError"),
    ("workbench.training.graph", "GraphError"),
    ("workbench.quant.layers", "QuantError"),
    ("workbench.sparsity.names", "SparsityError"),
    ("workbench.track", "TrackError"),
    ("workbench.workload", "WorkloadError"),
    ("sparse24.bench", "BenchError"),
    ("sparse24.build", "BuildError"),
)


def user_errors() -> tuple[type[Exception], ...]:
    """The classes of these errors, of the modules that are loaded now."""
    light = (
        resolve.SpecError,
        RecordError,
        files.FileError,
        dag.ConfigError,
        serve.ServeError,
        provenance.ProvenanceError,
    )
    heavy = (getattr(sys.modules[module], name) for module, name in HEAVY if module in sys.modules)
    return (*light, *heavy)
