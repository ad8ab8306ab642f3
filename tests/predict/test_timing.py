"""The time of a product: of a record where there is one, between two, else of the roofline."""

import json
from pathlib import Path

import pytest

from workbench.predict import records
from workbench.predict.devices import Device, Rate, device
from workbench.predict.groups import Node
from workbench.predict.shapes import Convolution, Product
from workbench.predict.timing import Timetable
from workbench.record import RecordError
from workbench.resolve import SpecError

CARD = Device(
    title="Card", records="Card", multiprocessors=10, clock_ghz=1.0, memory_tb=1.0,
    memory_share=1.0, l2_tb=4.0, l2_mb=10.0, launch_us=2.0, tile_clocks=1000.0, shared_bytes=128,
    attention_share=0.5, rates={"fp16": Rate(dense=100.0, sparse=200.0)},
)  # fmt: skip


def row(m: int, n: int, k: int, **times: float) -> dict:
    found = {name.replace("_", " "): {"median_us": time} for name, time in times.items()}
    return {"m": m, "n": n, "k": k, "dtype": "float16", "found": found}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        row(64, 1000, 64, library=10.0, sparse24_dense_mode=12.0, sparse24=5.0, cusparselt=6.0,
            sparse24_untuned=1.0),
        row(64, 4000, 64, library=40.0, sparse24_dense_mode=36.0, sparse24=20.0),
        row(64, 9000, 64, library=90.0),
    ]  # fmt: skip
    told = {"facts": {"device": "Card 80GB"}, "rows": rows}
    (tmp_path / "gemm.json").write_text(json.dumps(told))
    return tmp_path


def table(folder: Path) -> Timetable:
    return Timetable(CARD, "fp16", records.read(folder, CARD, "fp16"))


def test_a_measured_row_is_taken_as_it_is(folder) -> None:
    time = table(folder).product(Product(64, 1000, 64, module=True))
    # the faster of ours and cuSPARSELt; what the cost model chose is not the best
    assert time == (10.0, 12.0, 5.0, "measured")
    assert time.dense == 10.0


def test_between_two_rows_of_a_weight_times_are_interpolated(folder) -> None:
    time = table(folder).product(Product(64, 2000, 64, module=True))
    # 2000 is the middle of 1000 and 4000 in ratio, and 20 that of 10 and 40
    assert (time.library, time.sparse) == (pytest.approx(20.0), pytest.approx(10.0))
    assert time.source == "interpolated"


@pytest.mark.parametrize(
    "product",
    [
        Product(64, 500, 64, module=True),  # below the first
        Product(64, 99999, 64, module=True),  # beyond the last
        Product(64, 9000, 64, module=True),  # measured, but not 2:4
        Product(128, 1000, 64, module=True),  # of another weight
        Product(64, 1000, 64, count=2, module=True),
    ],
)
def test_what_no_records_tell_is_of_the_roofline_and_called_so(folder, product) -> None:
    assert table(folder).product(product).source == "roofline"


def test_a_pointwise_convolution_is_a_product_and_another_is_not(folder) -> None:
    point = Convolution(10, 64, 64, 10, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1)
    known = Product(64, 1000, 64, shape=point, module=True)
    assert table(folder).product(known).source == "measured"
    known.shape = point._replace(stride=(2, 2))
    assert table(folder).product(known).source == "roofline"


def test_a_convolution_is_found_by_all_of_its_sizes(folder) -> None:
    sizes = dict(n=2, c=64, k=64, h=8, w=8, r=3, s=3, stride=1, padding=1, groups=1)
    found = {"cuDNN": {"median_us": 9.0}, "sparse24": {"median_us": 4.5}}
    rows = [{**sizes, "dtype": "float16", "found": found}]
    told = {"facts": {"device": "Card"}, "rows": rows}
    (folder / "conv.json").write_text(json.dumps(told))
    shape = Convolution(2, 64, 64, 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    time = table(folder).product(Product(64, 128, 576, shape=shape, module=True))
    assert time == (9.0, 9.0, 4.5, "measured")
    dilated = shape._replace(dilation=(2, 2))
    time = table(folder).product(Product(64, 128, 576, shape=dilated, module=True))
    assert time.source == "roofline"


def test_records_of_another_device_or_type_are_not_used(folder) -> None:
    other = CARD.model_copy(update={"records": "NVIDIA A100"})
    assert records.read(folder, other, "fp16").files == ()
    assert records.read(folder, CARD, "int8").files == ()
    assert records.read(folder, CARD, "fp16").files == ("gemm.json",)


def test_a_damaged_record_is_told(folder) -> None:
    (folder / "gemm.json").write_text("{")
    with pytest.raises(RecordError, match=r"gemm.json: not JSON .* measure again"):
        table(folder)


def test_the_roofline_counts_waves_of_tiles_by_hand(tmp_path) -> None:
    # 2560 x 1280 in tiles of 256 x 128: 100 tiles, 10 waves on 10 multiprocessors, each of which
    # does 100 / 10 TFLOP/s, 1e7 operations a microsecond: 2 * 256 * 128 * 1000 / 1e7 = 6.5536 us,
    # and 1000 + 256 * 128 * 2 / 128 clocks at 1 GHz, 1.512 us, for the tile; 2 us of launch
    time = table(tmp_path).product(Product(2560, 1280, 1000, module=True))
    assert time.dense == pytest.approx(10 * (6.5536 + 1.512) + 2)
    assert time.sparse == pytest.approx(10 * (6.5536 / 2 + 1.512) + 2)


def test_the_roofline_is_bytes_where_there_is_little_to_compute(tmp_path) -> None:
    product = Product(64, 64, 64, module=True)
    product.reads, product.writes = [Node(10_000_000, True, False)], Node(5_000_000, True, False)
    # 30 MB at 1 TB/s, and 2 us; the packed weight saves 64 * 64 * 2 * 0.4375 bytes
    time = table(tmp_path).product(product)
    assert time.dense == pytest.approx(32.0)
    assert time.sparse == pytest.approx(32.0 - 64 * 64 * 2 * 0.4375 / 1e6)


def test_rates_of_records_take_the_place_of_the_files(folder) -> None:
    # 2 * 64 * 4000 * 64 operations: 36 us are 0.91 TFLOP/s, 20 us 1.64
    rates = table(folder).rates()
    assert rates["dense"] == pytest.approx(2 * 64 * 4000 * 64 / 36e-6 / 1e12)
    assert rates["sparse"] == pytest.approx(2 * 64 * 4000 * 64 / 20e-6 / 1e12)


def test_bytes_that_fit_the_cache_move_by_it(tmp_path) -> None:
    moving = table(tmp_path).moving
    assert moving(4e6) == pytest.approx(1.0)  # 4 MB of a 10 MB cache at 4 TB/s
    assert moving(6e6) == pytest.approx(6.0)  # more than its half, at 1 TB/s
    assert moving(4e6, cold=True) == pytest.approx(4.0)


def test_the_roofline_is_held_against_what_was_measured(folder) -> None:
    found = table(folder)
    dense, speedup = found.errors()[0]
    time = found.roofline(Product(64, 1000, 64, module=True))
    assert dense == pytest.approx(time.dense / 10 - 1, rel=0.2)  # it counts the bytes too
    assert speedup < 0  # 2x was measured, of which launch and tile leave less
    assert len(found.errors()) == 2  # the third has no 2:4 time


@pytest.mark.parametrize("name", ["h100", "a100"])
def test_the_cards_of_the_file_are_whole(name) -> None:
    found = device(name)
    assert {"fp16", "int8"} <= set(found.rates)
    assert all(rate.sparse > rate.dense for rate in found.rates.values())


def test_an_unknown_card_or_precision_is_told_with_the_known() -> None:
    with pytest.raises(SpecError, match=r"unknown device 'h10' \(did you mean 'h100'\?\)"):
        device("h10")
    with pytest.raises(SpecError, match="precision 'fp8': A100 .* has rates of fp16, int8"):
        device("a100").rate("fp8")
