"""Kinds of kernels by their names; clock, power and energy while a network runs."""

import sys
from threading import Event

import pytest

from workbench.bench import kinds, meter

NAMES = {
    "void sparse24::sm90_gemm_kernel<sparse24::Sm90Shape<(sparse24::Type)0, true, 2, 2, 128> >("
    "sparse24::Sm90Arguments)": "2:4 products",
    "void sparse24::sm90_gemm_kernel<sparse24::Sm90Shape<(sparse24::Type)2, false, 2, 2, 128> >("
    "sparse24::Sm90Arguments)": "dense products",
    "sm90_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x128": "2:4 products",
    "nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT": "dense products",
    "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc": "dense products",
    "triton_tem_fused_addmm_gelu_3": "dense products",
    "triton_per_fused_add_native_layer_norm_2": "norms",
    "triton_poi_fused_add_relu_7": "element-wise",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>": "attention",
    "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl": (
        "element-wise"
    ),
    "void at::native::max_pool_forward_nhwc<c10::Half, int>": "pooling",
    "Memcpy DtoD (Device -> Device)": "copies",
    "something else": "other",
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_a_kernel_is_known_by_its_name(name, kind) -> None:
    assert kinds.kind_of(name) == kind


def test_shares_add_up_to_one_the_largest_first() -> None:
    found = kinds.shares([("nvjet", 3.0), ("flash", 1.0), ("cutlass gemm", 4.0), ("odd", 2.0)])
    assert found == {"dense products": 0.7, "other": 0.2, "attention": 0.1}
    assert list(found) == ["dense products", "other", "attention"]


def test_clock_and_power_are_asked_for_while_the_calls_go_on() -> None:
    begun, called = Event(), []

    def call() -> None:
        called.append(True)
        begun.set()

    def ask(field: str) -> str:
        assert field == "clocks.sm,power.draw"
        assert begun.wait(10)
        return "1515, 529.50"

    told = meter.under_load(call, ask, lambda: None)
    assert told == {"clock_mhz": "1515", "power_w": "529.50"}
    assert called


def test_energy_that_is_not_counted_is_none_with_the_reason(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    assert meter.energy(lambda: None, 1e-3) == (None, "nvidia-ml-py is not installed")
