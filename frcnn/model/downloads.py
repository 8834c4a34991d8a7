"""torchvision's weights files: in torch.hub's cache, or from the network."""

import hashlib
import logging
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch
from torch.hub import HASH_REGEX, download_url_to_file

from frcnn.errors import UserError
from frcnn.time_limit import within

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # the longest wait for a server: for its first answer, and for each part


def cached(url: str) -> Path:
    """Where torch.hub keeps the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def fetch(url: str) -> None:
    """Make sure that the file of a URL is in torch.hub's cache; download it if it is missing.

    Raises:
        OSError: the server cannot be reached, does not answer within ``ANSWER_SECONDS``, or does
            not send the whole file; or the cache cannot be written.
        UserError: the file in the cache is damaged.
    """
    path = cached(url)
    digits = HASH_REGEX.search(path.name)
    prefix = digits[1] if digits else ""
    if not path.exists():
        _download(url, path, prefix)
    elif not _sha256(path).startswith(prefix):
        raise UserError(f"{path}: is damaged (its hash is not the one in its name): delete it")


def _download(url: str, path: Path, prefix: str) -> None:
    _wait_for_answer(url)
    log.info("downloading %s to %s", url, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _socket_timeout():
            download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())
    except (RuntimeError, HTTPException) as error:  # a wrong hash, or a broken answer
        raise ConnectionError(f"the file did not arrive whole: {error}") from error


def _wait_for_answer(url: str) -> None:
    """Raise OSError unless the server answers in time.

    The look-up of a server's name has no time limit in Python, and each of its addresses would
    have its own.
    """
    try:
        within(ANSWER_SECONDS, lambda: urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close())
    except HTTPException as error:
        raise ConnectionError(f"the answer cannot be read: {error!r}") from error


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """New sockets wait no longer than ``ANSWER_SECONDS``: torch.hub sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
