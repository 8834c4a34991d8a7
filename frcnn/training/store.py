"""The store that all processes of a run share: in it they report the error that ends the run."""

import json
import socket
import traceback
from typing import Any

import torch.distributed as dist

from frcnn.errors import ConfigError, UserError
from frcnn.parallel.cluster import RankInfo, Rendezvous
from frcnn.runfolder.signals import Stop

ERROR = "error"
# These are raised again as they are, all others as a RuntimeError.
KINDS = {kind.__name__: kind for kind in (UserError, ConfigError, Stop)}


def open_store(first: RankInfo, at: Rendezvous | None) -> tuple[dist.Store, Rendezvous]:
    """The store and where it is; without ``at`` a new one that only this machine can reach."""
    if at is not None:
        return connect_store(at, is_master=first.rank == 0 and not at.launcher_store), at
    listener = socket.create_server(("localhost", 0))
    at = Rendezvous("localhost", listener.getsockname()[1])
    return connect_store(at, is_master=True, master_listen_fd=listener.detach()), at


def connect_store(at: Rendezvous, **options: Any) -> dist.Store:
    """The store at this place, without the reports from before a restart by torchrun."""
    store = dist.TCPStore(at.host, at.port, wait_for_workers=False, **options)
    return dist.PrefixStore(at.attempt, store)


def report_error(store: dist.Store, error: BaseException) -> None:
    """Write the error that ends the run to the store, unless one is there."""
    kind = type(error).__name__
    message = error.args[0] if kind in KINDS else f"{kind}: {error}"
    trace = "".join(traceback.format_exception(error))
    record = {"kind": kind, "message": message, "trace": trace}
    store.compare_set(ERROR, "", json.dumps(record))


def reported_error(store: dist.Store) -> BaseException | None:
    """The error that ends the run, from any process, to be raised here; None if there is none."""
    if not store.check([ERROR]):
        return None
    record = json.loads(store.get(ERROR))
    error = KINDS.get(record["kind"], RuntimeError)(record["message"])
    error.add_note(record["trace"])
    return error
