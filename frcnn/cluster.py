"""Which process of how many this is, where a launcher started several: torchrun or Slurm's srun."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Place:
    """This process among ``size``: its number overall, and on its machine."""

    rank: int
    size: int
    local_rank: int


def place(variables: Mapping[str, str] = os.environ) -> Place | None:
    """What the launcher's variables say; None where there is no launcher."""
    for rank, size, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ):
        if int(variables.get(size, "1")) > 1 and rank in variables:
            return Place(int(variables[rank]), int(variables[size]), int(variables.get(local, "0")))
    return None


def address(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT, where the processes meet.

    srun sets neither: they meet on the job's first machine, at a port that the job's number gives.
    """
    job = int(variables.get("SLURM_JOB_ID", "0"))
    found = {
        "MASTER_ADDR": first_host(variables.get("SLURM_STEP_NODELIST", "localhost")),
        "MASTER_PORT": str(20_000 + job % 20_000),
    }
    return {key: variables.get(key, value) for key, value in found.items()}


def first_host(nodes: str) -> str:
    """``gpu[07-09,12],cpu1`` -> ``gpu07``."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
