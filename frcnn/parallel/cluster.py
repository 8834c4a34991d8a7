"""The rank of this process and the place where all meet, from torchrun's or srun's variables."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class RankInfo:
    """This process among ``size``: its rank overall, and its rank on its machine."""

    rank: int
    size: int
    local_rank: int


@dataclass
class Rendezvous:
    """Where processes meet: the address of a store of torch.distributed's.

    Args:
        launcher_store: the launcher hosts the store; else the process of rank 0 does.
        attempt: the number of restarts by the launcher; each attempt has its own keys in the store.
    """

    host: str
    port: int
    launcher_store: bool = False
    attempt: str = "0"


def detect_launcher(variables: Mapping[str, str] = os.environ) -> RankInfo | None:
    """The rank that a launcher gave this process; None if no launcher started several processes.

    Only srun sets SLURM_STEP_NUM_TASKS. A Slurm batch script also has SLURM_PROCID and the job's
    SLURM_NTASKS, but it is a single process.
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

    torchrun gives the address. srun does not: its processes meet on the first machine of the step,
    at a port computed from the job's id.
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
    """The first host of a Slurm node list: ``gpu[07-09,12],cpu1`` -> ``gpu07``."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
