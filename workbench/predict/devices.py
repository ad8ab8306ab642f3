"""The cards that predictions are made for, from experiments/bench/devices.yaml."""

from workbench import resolve
from workbench.resolve import EXPERIMENTS, SpecError
from workbench.sections import Positive, Section

PRECISIONS = {"fp16": "float16", "int8": "int8", "fp8": "float8_e4m3fn"}
BYTES = {"fp16": 2, "int8": 1, "fp8": 1}  # of a weight's element
FILE = EXPERIMENTS / "bench" / "devices.yaml"


class Rate(Section):
    """TFLOP/s of a large product, of the dense-equivalent work."""

    dense: Positive
    sparse: Positive


class Device(Section):
    """A card; what each number is and where it comes from stands in the file."""

    title: str
    records: str
    multiprocessors: int
    clock_ghz: Positive
    memory_tb: Positive
    memory_share: Positive
    l2_tb: Positive
    l2_mb: Positive
    launch_us: Positive
    tile_clocks: Positive
    shared_bytes: Positive
    attention_share: Positive
    rates: dict[str, Rate]

    def rate(self, precision: str) -> Rate:
        """The rates of a precision; SpecError for one that the card lacks."""
        if precision not in self.rates:
            raise SpecError(
                f"precision {precision!r}: {self.title} has rates of {', '.join(self.rates)} "
                f"(experiments/bench/{FILE.name})"
            )
        return self.rates[precision]


def device(name: str) -> Device:
    """The card of a name; SpecError with the known ones for another."""
    found = resolve.read_yaml(FILE)
    if name not in found:
        near = resolve.nearest(name, list(found))
        raise SpecError(f"unknown device {name!r}{near}; known: {', '.join(found)}")
    return resolve.checked(Device, found[name], {}, f"bench/{FILE.name}")


def names_by_record() -> dict[str, str]:
    """For each card of the file how its name begins in records."""
    return {name: given["records"] for name, given in resolve.read_yaml(FILE).items()}
