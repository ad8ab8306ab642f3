"""A real SLURM of two nodes on this machine's loopback, from Debian's packages, for one test."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "runuser")
# the snakemake plugin's jobs look for the configuration here, whatever SLURM_CONF says
CONFIGURATION = Path("/etc/slurm/slurm.conf")
NAME = "ClusterName=workbench_loopback"  # tells what a killed test left from a SLURM in use
CONF = """
{name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
MinJobAge=300
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=1 RealMemory=8000 \
Gres=gpu:1
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=60 State=UP
"""
GRES = "NodeName=n[1-2] Name=gpu File=/dev/zero\n"  # stands for a card: SLURM counts it


def absent() -> str:
    """Why no SLURM can be started here, or nothing."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd munge)"
    if os.geteuid() != 0:
        return "only root can start SLURM"
    if CONFIGURATION.exists() and NAME not in CONFIGURATION.read_text():
        return f"{CONFIGURATION} is there: this machine has a SLURM of its own"
    return ""


class Slurm:
    """The daemons, which end with `stop`."""

    def __init__(self, folder: Path) -> None:
        """Start munge, the controller and two nodes; wait until both are idle."""
        self.folder, self.daemons = folder, []
        (folder / "state").mkdir(parents=True)
        for above in (folder, *folder.parents):  # munge is a user of its own
            above.chmod(above.stat().st_mode | 0o011)
        munge = folder / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        (folder / "completed").touch()
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        CONFIGURATION.write_text(CONF.format(name=NAME, host=socket.gethostname(), folder=folder))
        CONFIGURATION.with_name("gres.conf").write_text(GRES)
        files = [f"--{name}-file={munge}/{name}" for name in ("pid", "log", "seed")]
        link = munge / "socket"
        authority = ["munged", "--foreground", f"--key-file={munge}/key", f"--socket={link}"]
        self._start("runuser", "-u", "munge", "--", *authority, *files)
        (folder / "munge.socket").symlink_to(link)
        self._until(link.exists, "munge")
        self._start("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            (folder / f"spool.{node}").mkdir()
            self._start("slurmd", "-D", "-N", node)
        self._until(lambda: self.nodes("idle") == {"n1", "n2"}, "both nodes")

    def nodes(self, state: str) -> set[str]:
        """The nodes in a state."""
        shown = self.tell("sinfo", "--noheader", "--Node", "--format=%N %t", check=False)
        pairs = [line.split() for line in shown.splitlines()]
        return {node for node, found in pairs if found.rstrip("*~#") == state}

    def running(self) -> dict[str, str]:
        """Running jobs with the node of each."""
        shown = self.tell("squeue", "--noheader", "--states=running", "--format=%i %N")
        return dict(line.split() for line in shown.splitlines() if len(line.split()) == 2)

    def completed(self) -> list[dict[str, str]]:
        """Jobs that are over, as the completion log has them, in order."""
        lines = (self.folder / "completed").read_text().splitlines()
        return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]

    def tell(self, *command: str, check: bool = True) -> str:
        """What a SLURM command prints."""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """End the daemons and take the configuration away."""
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            daemon.wait(timeout=30)
        for name in ("slurm.conf", "gres.conf"):
            CONFIGURATION.with_name(name).unlink(missing_ok=True)

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("a") as printed:
            self.daemons.append(subprocess.Popen(command, stdout=printed, stderr=printed))

    def _until(self, true, what: str) -> None:  # noqa: ANN001 - a function
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end, f"{what} did not come up; see {self.folder}"
            time.sleep(0.2)
