"""A real two-node Slurm on this machine: munge, one controller, and two daemons that are a node each."""

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
FirstJobId={first_job}
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs={cpus} RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs={cpus} RealMemory=2000
PartitionName=main Nodes=n1,n2 Default=YES State=UP
"""


def why_not() -> str | None:
    """Say why this machine cannot run Slurm, or None where it can."""
    missing = [program for program in PROGRAMS if which(program) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}); apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    return None


def which(program: str) -> str | None:
    """Find a program, also where Debian keeps daemons."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """Ask the system for ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class Job:
    """What the controller says of a job."""

    state: str
    restarts: int
    exit_code: str


class SlurmCluster:
    """Two nodes, n1 and n2, that live until `stop`. Everything lies in one folder, with ports of its own."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        """Start the daemons and wait until both nodes are idle.

        Raises:
            RuntimeError: munge or Slurm does not come up; the message has the end of its log.
        """
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}
        self._munged = start_munge(folder)
        (folder / "state").mkdir(parents=True)
        controller_port, port_1, port_2 = free_ports(3)
        text = CONFIGURATION.format(
            host=socket.gethostname(),
            folder=folder,
            cpus=cpus,
            controller_port=controller_port,
            port_1=port_1,
            port_2=port_2,
            # Jobs derive a port from their number; two clusters on one machine must not meet there.
            first_job=controller_port,
        )
        (folder / "slurm.conf").write_text(text, encoding="utf-8")
        self._daemons = [self._start("slurmctld", "-D")]
        for node in ("n1", "n2"):
            (folder / "spool" / node).mkdir(parents=True)
            self._daemons.append(self._start("slurmd", "-D", "-N", node))
        self._wait_for_nodes()

    def submit(self, *arguments: str, cwd: Path) -> int:
        """Submit a job from a folder; return its id."""
        return int(self.run("sbatch", "--parsable", *arguments, cwd=cwd).strip())

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands; return what it prints.

        Raises:
            RuntimeError: it fails.
        """
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def job(self, job_id: int | str) -> Job:
        """Ask the controller about a job."""
        words = self.run("scontrol", "show", "job", str(job_id), "--oneliner").split()
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        return Job(fields["JobState"], int(fields["Restarts"]), fields["ExitCode"])

    def wait(self, job_id: int | str, *states: str, seconds: float) -> Job:
        """Wait until a job is in one of ``states``.

        Raises:
            TimeoutError: it is not, within ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if job.state in states:
                return job
            time.sleep(0.5)
        raise TimeoutError(f"job {job_id} is {self.job(job_id)}, not {' or '.join(states)}, after {seconds:.0f} s")

    def stop(self) -> None:
        """Cancel what runs and end every process that this cluster started."""
        for command in (["scancel", "--full", "--signal=KILL", "--user=root"], ["scancel", "--user=root"]):
            subprocess.run(command, env=self.environment, capture_output=True, timeout=30)
        time.sleep(1)
        for process in [*reversed(self._daemons), self._munged]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()

    def _start(self, program: str, *arguments: str) -> subprocess.Popen:
        path = which(program)
        assert path is not None
        with (self.folder / f"{program}{''.join(arguments)}.out").open("w") as output:
            return subprocess.Popen(
                [path, *arguments], env=self.environment, stdout=output, stderr=output, start_new_session=True
            )

    def _wait_for_nodes(self) -> None:
        deadline, states = time.monotonic() + 60, ""
        while time.monotonic() < deadline:
            try:
                states = self.run("sinfo", "--noheader", "--Node", "--format=%N %T")
                if states.split() == ["n1", "idle", "n2", "idle"]:
                    return
            except RuntimeError as error:
                states = str(error)
            time.sleep(0.5)
        logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
        self.stop()
        raise RuntimeError(f"the nodes are not idle after 60 s: {states}\n{logs}")


def start_munge(folder: Path) -> subprocess.Popen | None:
    """Start munge unless it answers already; return its process if this started it.

    Raises:
        RuntimeError: it does not answer.
    """
    if munge_answers():
        return None
    for name in ("/run/munge", "/var/log/munge", "/var/lib/munge"):
        Path(name).mkdir(parents=True, exist_ok=True)
        shutil.chown(name, "munge", "munge")
    path = which("munged")
    assert path is not None
    with (folder / "munged.log").open("w") as log:
        process = subprocess.Popen(
            [path, "--foreground"], user="munge", group="munge", extra_groups=[], stdout=log, stderr=log, start_new_session=True
        )
    for _ in range(40):
        if munge_answers():
            return process
        time.sleep(0.25)
    process.kill()
    raise RuntimeError(f"munge does not answer: {(folder / 'munged.log').read_text()}")


def munge_answers() -> bool:
    """Encode and decode a credential."""
    credential = subprocess.run(["munge", "-n"], capture_output=True)
    decoded = subprocess.run(["unmunge"], input=credential.stdout, capture_output=True)
    return credential.returncode == 0 and decoded.returncode == 0
