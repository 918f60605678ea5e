"""Compatibility of the torch build with the NVIDIA driver, without importing torch.

A driver runs builds for its own CUDA major version and older ones; a build for a newer minor
version has a limited feature set (NVIDIA, CUDA Compatibility, "Minor Version Compatibility").
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fitb.cluster.process import Output
from fitb.tools.doctor.check import Check
from fitb.tools.doctor.deadlines import outputs_of
from fitb.tools.doctor.interpreter import pip

NAME = "torch"
_TORCH = "torch>=2.10"  # as in setup.cfg; a test compares the two
_WHEELS = "https://download.pytorch.org/whl"
_INDEXES = ((13, 0, "cu130"), (12, 0, "cu126"))  # lowest CUDA version of a driver, wheel index
_SMI_S = 4.0  # without persistence mode a driver takes seconds for eight GPUs


@dataclass(frozen=True)
class Build:
    """Build of torch, from torch/version.py.

    Args:
        version: torch version, such as 2.13.0+cpu.
        cuda: CUDA version, such as 12.6; None for a build without CUDA.
        hip: ROCm version; None for a build without ROCm.
    """

    version: str
    cuda: str | None
    hip: str | None


@dataclass(frozen=True)
class Driver:
    """NVIDIA driver and GPUs, from nvidia-smi.

    Args:
        version: driver version.
        cuda: newest CUDA version that the driver supports; None if unknown.
        gpus: names of the GPUs.
    """

    version: str
    cuda: str | None
    gpus: tuple[str, ...]


def parse_build(text: str) -> Build:
    """Parse torch/version.py; names whose value is no string are None."""
    assigned = r"^(__version__|cuda|hip)\b.*= *['\"](.*)['\"]"
    values = dict(re.findall(assigned, text, flags=re.MULTILINE))
    return Build(values.get("__version__", "unknown"), values.get("cuda"), values.get("hip"))


def parse_driver(page: str, names: str) -> Driver | None:
    """Parse the output of `nvidia-smi` and of `nvidia-smi -L`; None without a GPU."""
    gpus = tuple(re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", names, flags=re.MULTILINE))
    version = re.search(r"Driver Version:\s*([\d.]+)", page)
    cuda = re.search(r"CUDA (?:UMD )?Version:\s*(\d+\.\d+)", page)
    if not gpus:
        return None
    return Driver(version[1] if version else "unknown", cuda[1] if cuda else None, gpus)


def _pair(version: str) -> tuple[int, int]:
    major, _, rest = version.partition(".")
    return int(major), int(re.match(r"\d*", rest)[0] or 0)  # type: ignore[index]


def install(cuda: str | None) -> str:
    """Return the command that installs a torch build for a driver of this CUDA version."""
    known = _pair(cuda) if cuda else (13, 0)
    index = next((tag for *least, tag in _INDEXES if known >= tuple(least)), None)
    if index is None:
        return "ask the site for driver 525 or newer (CUDA 12)"
    return pip("--upgrade", "--force-reinstall", _TORCH, "--index-url", f"{_WHEELS}/{index}")


def torch_and_driver(build: Build | None, driver: Driver | None, site_gpus: int) -> Check:
    """Check that the torch build runs on the GPUs.

    Args:
        build: torch build; None if torch is not installed.
        driver: driver; None if this host has no GPU.
        site_gpus: GPUs on a host of the partition; 0 if none or unknown.
    """
    if build is None:
        return Check("skipped", NAME, "not installed; see packages")
    runs_on = f"CUDA {build.cuda}" if build.cuda else f"ROCm {build.hip}" if build.hip else "CPUs"
    what = f"{build.version} for {runs_on}"
    if driver is None and site_gpus and not (build.cuda or build.hip):
        found = f"{what}; hosts of the partition have {site_gpus} GPUs"
        return Check("warn", NAME, found, install(None))
    if driver is None:
        return Check("ok", NAME, f"{what}; no GPU on this host, as usual for a login node")
    what += f"; {len(driver.gpus)} x {driver.gpus[0]}, driver {driver.version}"
    if build.cuda is None:
        return Check("bad", NAME, f"{what}: this build sees no NVIDIA GPU", install(driver.cuda))
    if driver.cuda is None:
        return Check("ok", NAME, f"{what}, CUDA version unknown")
    what += f" (CUDA {driver.cuda})"
    ours, theirs = _pair(build.cuda), _pair(driver.cuda)
    if ours[0] > theirs[0]:
        return Check("bad", NAME, f"{what}: the driver is too old for it", install(driver.cuda))
    if ours > theirs and install(driver.cuda).endswith(f"cu{ours[0]}{ours[1]}"):
        return Check("ok", NAME, f"{what}, which runs every CUDA {ours[0]}")
    if ours > theirs:
        found = f"{what}: the driver is older, so code compiled to PTX will not run"
        return Check("warn", NAME, found, install(driver.cuda))
    return Check("ok", NAME, what)


def smi_check(answer: Output, has_devices: bool) -> Check | None:
    """Report an nvidia-smi that fails; None if it works, is missing, or finds no device.

    Args:
        has_devices: whether /dev shows GPUs on this host.
    """
    if answer.ok or answer.missing or "no devices" in answer.problem.lower():
        return None
    if has_devices or "no answer" in answer.problem:
        fix = "sbatch --exclude=$(hostname -s) ...  # and report it to the site"
        return Check("bad" if has_devices else "warn", "nvidia-smi", answer.problem, fix)
    return Check("ok", "nvidia-smi", f"no driver loaded on this host ({answer.problem})")


def installed_build() -> Build | None:
    """Return the build of the torch that would be imported; None if there is none."""
    try:
        spec = importlib.util.find_spec("torch")
        if spec is None or not spec.origin:
            return None
        return parse_build((Path(spec.origin).parent / "version.py").read_text())
    except (ImportError, ValueError):  # ValueError: sys.modules["torch"] is None
        return None
    except OSError:
        return Build("of unknown version", None, None)


def look(site_gpus: int) -> Iterator[Check]:
    """Yield all checks of the GPUs and of torch."""
    asked = {"page": ("nvidia-smi",), "names": ("nvidia-smi", "-L")}
    page, names = outputs_of(asked, _SMI_S).values()
    driver = parse_driver(page.text, names.text) if names.ok else None
    if failed := smi_check(names, Path("/dev/nvidia0").exists()):
        yield failed
    yield torch_and_driver(installed_build(), driver, site_gpus)
