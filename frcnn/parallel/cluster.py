"""Which process of how many this is, where a launcher started several: torchrun or Slurm's srun."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class RankInfo:
    """This process among ``size``: its number overall, and on its machine."""

    rank: int
    size: int
    local_rank: int


@dataclass
class Rendezvous:
    """Where processes meet: a store of torch.distributed's.

    Args:
        launcher_store: by a process of the launcher's; else by the first of those that meet.
        attempt: changes where a launcher starts them all again.
    """

    host: str
    port: int
    launcher_store: bool = False
    attempt: str = "0"


def detect_launcher(variables: Mapping[str, str] = os.environ) -> RankInfo | None:
    """What the launcher's variables say; None where there is no launcher.

    A batch script of Slurm's has SLURM_PROCID and the job's SLURM_NTASKS too, though it is no task
    of several; SLURM_STEP_NUM_TASKS is srun's own.
    """
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if int(variables.get(size, "1")) > 1 and rank in variables:
            return RankInfo(
                int(variables[rank]), int(variables[size]), int(variables.get(local, "0"))
            )
    return None


def rendezvous(variables: Mapping[str, str] = os.environ) -> Rendezvous:
    """Where the processes of a launcher meet.

    srun does not say: they meet on the job's first machine, at a port that the job's number gives.
    """
    host = first_host(variables.get("SLURM_STEP_NODELIST", "localhost"))
    port = 20_000 + int(variables.get("SLURM_JOB_ID", "0")) % 20_000
    return Rendezvous(
        variables.get("MASTER_ADDR", host),
        int(variables.get("MASTER_PORT", port)),
        launcher_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=variables.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def first_host(nodes: str) -> str:
    """``gpu[07-09,12],cpu1`` -> ``gpu07``."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
