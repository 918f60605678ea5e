"""Published dense peak TFLOP/s of accelerators, the denominators of MFU.

They are without sparsity; some data sheets print twice as much, with sparsity. fp16 and bf16
accumulate in fp32; fp32 is full fp32, as PyTorch leaves TF32 off. Names must match whole, so a MIG
slice or a variant (4090 D, 3090 Ti) is unknown.
"""

from __future__ import annotations

import re

# Name as torch.cuda.get_device_name() returns it (a regular expression): fp16, bf16, fp32.
_PEAKS: dict[str, tuple[float | None, float | None, float | None]] = {
    # NVIDIA HGX B200 data sheet, a GPU of the eight; its revisions differ in fp32.
    r"NVIDIA B200": (2250.0, 2250.0, None),
    # NVIDIA H200 data sheet.
    r"NVIDIA H200": (989.5, 989.5, 67.0),
    r"NVIDIA H200 NVL": (835.5, 835.5, 60.0),
    # NVIDIA GH200 data sheet.
    r"NVIDIA GH200 (480|144)GB.*": (989.5, 989.5, 67.0),
    # NVIDIA H100 data sheet and Hopper architecture white paper.
    r"NVIDIA H100 80GB HBM3": (989.5, 989.5, 67.0),
    r"NVIDIA H100 NVL": (835.5, 835.5, 60.0),
    r"NVIDIA H100 PCIe": (756.0, 756.0, 51.0),
    # NVIDIA A100 data sheet.
    r"(NVIDIA )?A100(-SXM4|-PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": (312.0, 312.0, 19.5),
    # NVIDIA A30, A40 and A10 data sheets.
    r"NVIDIA A30": (165.0, 165.0, 10.3),
    r"NVIDIA A40": (149.7, 149.7, 37.4),
    r"NVIDIA A10": (125.0, 125.0, 31.2),
    # NVIDIA L40S and L4 data sheets.
    r"NVIDIA L40S": (362.0, 362.0, 91.6),
    r"NVIDIA L4": (121.0, 121.0, 30.3),
    # NVIDIA V100 data sheet: no bf16 in matrix units.
    r"Tesla V100-SXM2-(16|32)GB": (125.0, None, 15.7),
    r"Tesla V100-PCIE-(16|32)GB": (112.0, None, 14.0),
    # NVIDIA T4 data sheet.
    r"(NVIDIA |Tesla )?T4": (65.0, None, 8.1),
    # NVIDIA Ada and Ampere GA102 architecture white papers.
    r"NVIDIA GeForce RTX 4090": (165.2, 165.2, 82.6),
    r"NVIDIA GeForce RTX 3090": (71.0, 71.0, 35.6),
    # AMD Instinct data sheets; of MI250X one of its two dies, which is a device to PyTorch.
    r"AMD Instinct MI300X": (1307.4, 1307.4, 163.4),
    r"AMD Instinct MI250X": (191.5, 191.5, 47.9),
}
_COLUMNS = {"fp16": 0, "bf16": 1, "fp32": 2}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """Return the peak of one device in 10^12 operations per second; None if it is unknown.

    Args:
        device_name: as torch.cuda.get_device_name() returns it.
        precision: fp16, bf16 or fp32.
    """
    for name, peaks in _PEAKS.items():
        if re.fullmatch(name, device_name):
            return peaks[_COLUMNS[precision]]
    return None
