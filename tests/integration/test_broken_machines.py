"""`fitb doctor` on machines broken on purpose: each time the right line, and what to type.

Commands are scripts on PATH, packages lie on PYTHONPATH before the real ones, small and read-only
filesystems are mounted where root may; `torch` is a folder whose import would fail.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from executable import executable
from small import mounted

ROOT = Path(__file__).resolve().parents[2]
OF_THIS_MACHINE = {"hostname", "ulimit -n", "ulimit -l", "clock"}
KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c"
CONFIG = {
    "AuthType": "auth/munge",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "PreemptMode": "REQUEUE",
    "PreemptType": "preempt/partition_prio",
    "ProctrackType": "proctrack/cgroup",
    "SLURM_VERSION": "24.05.3",
}
PARTITION = {
    "PartitionName": "gpu",
    "Default": "YES",
    "GraceTime": "300",
    "MaxTime": "UNLIMITED",
    "PreemptMode": "REQUEUE",
}
SMI = "| NVIDIA-SMI {0}   Driver Version: {0}   CUDA Version: {1}  |"


@dataclass
class Machine:
    """A login node with GPUs and a Slurm of one host, in good health."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    run_dir: str = ""
    config: dict[str, str] = field(default_factory=lambda: dict(CONFIG))
    partition: dict[str, str] = field(default_factory=lambda: dict(PARTITION))

    def __post_init__(self):
        for name in ("bin", "site", "home", "tmp", "work"):
            (self.folder / name).mkdir()
        self.run_dir = str(self.folder / "work" / "run")
        self.env |= {
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "PATH": str(self.folder / "bin"),
            "PYTHONPATH": f"{self.folder / 'site'}:{ROOT}",
            "FITB_PYTHON": sys.executable,
            "WANDB_MODE": "offline",
        }
        for name in ("gcc", "sbatch", "srun"):
            self.command(name, "")
        self.command("munge", "MUNGE:AwQDAAB")
        self.command("sinfo", "gpu|1|64|gpu:h100:4(S:0-1)")
        self.torch("2.13.0+cu130", "13.0")
        self.driver("580.65.06", "13.0")

    def command(self, name, output, code=0):
        self.script(name, f"/bin/cat <<'END'\n{output}\nEND\nexit {code}")

    def script(self, name, text):
        executable(self.folder / "bin" / name, text, shell="/bin/sh")

    def driver(self, version, cuda):
        self.script(
            "nvidia-smi",
            "if [ \"$1\" = -L ]; then echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n"
            f"else echo '{SMI.format(version, cuda)}'; fi",
        )

    def torch(self, version, cuda):
        package = self.folder / "site" / "torch"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open')\n")
        text = f"__version__ = {version!r}\ncuda: Optional[str] = {cuda!r}\nhip = None\n"
        (package / "version.py").write_text(text)

    def distribution(self, name, version, *lines):
        """Metadata of a package that hide those of the real one."""
        folder = self.folder / "site" / f"{name}-{version or 0}.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.1", f"Name: {name}"]
        head += [f"Version: {version}"] if version else []
        (folder / "METADATA").write_text("\n".join([*head, *lines, "", ""]))

    def doctor(self, *words, start=("-m", "fitb")):
        """Run it; return what ended."""
        config = "\n".join(f"{name:24}= {value}" for name, value in self.config.items())
        fields = " ".join(f"{name}={value}" for name, value in self.partition.items())
        if not (self.folder / "bin" / "scontrol").exists():
            self.script(
                "scontrol",
                f"if [ \"$2\" = config ]; then /bin/cat <<'END'\n{config}\nEND\n"
                f"else echo '{fields}'; fi",
            )
        words = ("doctor", "--sbatch=--nodes=1 --cpus-per-task=4", *words)
        return subprocess.run(
            [sys.executable, *start, *words],
            cwd=self.folder / "work",
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def checks(self, *words):
        """The checks; a busy machine, on which one was late, is asked again."""
        for _ in range(3):
            done = self.doctor("--json", *words)
            assert done.stderr == ""
            checks = json.loads(done.stdout)
            if not any("something hangs" in check["found"] for check in checks):
                break
        return checks, done.returncode


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "machine").mkdir()
    return Machine(tmp_path / "machine")


def wrong(checks):
    found = {c["name"]: c for c in checks if c["status"] in ("warn", "bad")}
    return {name: check for name, check in found.items() if name not in OF_THIS_MACHINE}


def no_munge(machine):
    (machine.folder / "bin" / "munge").unlink()
    machine.command("scontrol", "slurm_load_ctl_conf error: Unable to contact controller", 1)


def package_missing(machine):
    wanted = importlib.metadata.requires("fitb") or []
    lines = [f"Requires-Dist: {line}" for line in wanted if "extra ==" not in line]
    machine.distribution("fitb", "0.1.0", "Requires-Python: >=3.10", *lines, "Requires-Dist: wy>=2")
    machine.distribution("numpy", None)


SOCKET = "munge: Error: Failed to access /run/munge/munge.socket.2"
FULL = "server:/home 9990000* 9000000 10000000 6days 9 0 0"
DAMAGES: dict[str, Callable[[Machine], object]] = {
    "old driver": lambda machine: machine.driver("535.104.05", "12.2"),
    "no munge": no_munge,
    "dead munge": lambda machine: machine.command("munge", SOCKET, 6),
    "cancels": lambda machine: machine.partition.update(PreemptMode="CANCEL", GraceTime="0"),
    "few GPUs": lambda machine: machine.command("sinfo", "gpu|1|64|gpu:h100:2(S:0-1)"),
    "package missing": package_missing,
    "full home": lambda machine: machine.command("quota", FULL, 1),
    "sleeping Slurm": lambda machine: machine.script("scontrol", "/bin/sleep 600"),
}


@pytest.mark.parametrize(
    ("damage", "name", "status", "found", "fix"),
    [
        ("old driver", "torch", "bad", "driver is too old", "download.pytorch.org/whl/cu126"),
        ("no munge", "munge", "bad", "munge is not on PATH", "apt-get install munge"),
        ("dead munge", "munge", "bad", "munge.socket.2", "systemctl restart munge"),
        ("cancels", "PreemptMode", "bad", "CANCEL", "--dependency=singleton"),
        ("few GPUs", "job shape", "bad", "never starts", "--gpus-per-node=2"),
        ("package missing", "packages", "bad", "numpy has damaged metadata, ", "'wy>=2'"),
        ("full home", "quota", "warn", "nearly full", "export HF_HOME="),
        ("sleeping Slurm", "slurm", "bad", "gave no answer in 3 s", "scontrol ping"),
    ],
)
def test_a_broken_machine_is_told_with_what_to_type(machine, damage, name, status, found, fix):
    DAMAGES[damage](machine)
    checks, code = machine.checks()
    found_wrong = wrong(checks)
    assert found_wrong[name]["status"] == status, checks
    assert found in found_wrong[name]["found"] and fix in found_wrong[name]["fix"]
    assert code == (2 if any(c["status"] == "bad" for c in checks) else 1)
    assert all(check["fix"] for check in found_wrong.values())
    consequences = {"munge": {"slurm"}, "PreemptMode": {"GraceTime"}, "slurm": set()}
    assert set(found_wrong) - {name} <= consequences.get(name, set())


def test_a_machine_in_good_health_has_nothing_to_mend_and_imports_no_torch(machine):
    checks, code = machine.checks()
    assert not wrong(checks), checks
    assert code in (0, 1) and (code == 0) == all(c["status"] != "warn" for c in checks)
    found = {check["name"]: check for check in checks}
    assert "1 x NVIDIA H100, driver 580.65.06 (CUDA 13.0)" in found["torch"]["found"]
    assert found["slurm"]["found"].startswith("24.05.3; partitions gpu;")
    assert found["job shape"]["status"] == found["munge"]["status"] == "ok"
    assert [set(check) for check in checks] == [{"status", "name", "found", "fix"}] * len(checks)


@pytest.mark.parametrize(
    ("options", "name", "found"),
    [
        ("size=2m", "run_dir space", "0.00 GB free, expected 1."),
        ("size=4g,nr_inodes=3", "run_dir inodes", "inodes free, expected 10,000"),
        ("ro", "run_dir writable", "Read-only file system"),
    ],
)
def test_a_run_directory_that_cannot_hold_the_run_is_told(machine, options, name, found):
    where = machine.folder / "mounted"
    with mounted(where, "-t", "tmpfs", "-o", options, "tmpfs") as folder:
        flags = ["--run_dir", str(folder / "run"), "--model.teacher", str(machine.folder)]
        checks, code = machine.checks(*flags)
    check = wrong(checks)[name]
    assert code == 2 and check["status"] == "bad"
    assert found in check["found"] and "--run_dir" in check["fix"]
    shards = wrong(checks)["shards"]  # there are none
    assert "fitb prepare" in shards["found"] + shards["fix"]


def test_no_key_is_printed_whatever_a_command_says(machine):
    del machine.env["WANDB_MODE"]
    machine.env |= {"WANDB_API_KEY": KEY, "HF_TOKEN": f"hf_{KEY}"}
    machine.env["WANDB_BASE_URL"] = f"http://user:{KEY}@127.0.0.1:9"
    (machine.folder / "home" / ".netrc").write_text(f"machine api.wandb.ai {KEY}\n")  # damaged
    machine.script("scontrol", 'echo "key $WANDB_API_KEY and $HF_TOKEN" >&2; exit 1')
    for words in ((), ("--json",), ("--optim.lr", KEY)):
        done = machine.doctor(*words)
        assert done.returncode == 2
        assert KEY not in done.stdout + done.stderr
    assert "in WANDB_API_KEY (not shown)" in done.stdout
    assert "127.0.0.1 cannot be reached" in done.stdout


WITHOUT_LIBRARIES = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "deepspeed", "wandb", "numpy")))
from fitb.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("start", "packages"),
    [
        (("-S", "-m", "fitb"), "packaging is missing"),  # nothing but the standard library
        (("-c", WITHOUT_LIBRARIES), "installed and in range"),
    ],
)
def test_it_works_without_the_libraries_that_it_asks_about(machine, start, packages):
    flags = ("--json", "--data.shards", "nowhere", "--model.teacher", "null")
    done = machine.doctor(*flags, start=start)
    assert "Traceback" not in done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert packages in checks["packages"]["found"]
    assert checks["slurm"]["status"] == "ok"
    assert "could not be checked" not in done.stdout
    if start[0] == "-c":  # its child has numpy, and a torch that is broken
        assert "OSError: libcudart.so.12" in checks["models"]["found"]
        assert "pip install" in checks["models"]["fix"]
