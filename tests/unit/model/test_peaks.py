"""Published peaks of accelerators by the names that PyTorch gives them."""

import pytest

from fitb.model.peaks import peak_tflops


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "fp32", 67.0),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312.0),
        ("A100-PCIE-40GB", "fp32", 19.5),
        ("NVIDIA A100 80GB PCIe", "bf16", 312.0),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("Tesla T4", "fp16", 65.0),
        ("AMD Instinct MI300X", "bf16", 1307.4),
        # What is not in the table, though a name in it is a part of its own:
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "fp16", None),
        ("NVIDIA A10G", "fp16", None),
        ("NVIDIA GeForce RTX 4090 D", "fp16", None),
        ("cpu", "fp32", None),
    ],
)
def test_a_device_has_the_peak_of_its_whole_name_or_none(name, precision, peak):
    assert peak_tflops(name, precision) == peak
