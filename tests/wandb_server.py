"""Stands in for W&B's server, so that a run can be online without a network."""

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# As much of an answer to every query as the client needs to go on.
OWNER = {"id": "3", "name": "owner"}
ANSWER: dict[str, Any] = {
    "viewer": {"id": "1", "entity": "owner", "username": "user", "flags": "{}",
               "teams": {"edges": []}},
    "upsertBucket": {"inserted": True, "bucket": {
        "id": "1", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0,
        "project": {"id": "2", "name": "project", "entity": OWNER}}},
    "project": None,  # has no artifacts yet
    "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []},
}  # fmt: skip
# A table; it would be asked for much more.
REFUSED = {b"mutation CreateArtifact": "no room for artifacts here"}


class Handler(BaseHTTPRequestHandler):
    """Takes whatever comes."""

    def answer(self) -> None:
        """Keep (path, headers, body) and say that all went well."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, str(self.headers), body))  # type: ignore[attr-defined]
        answers: dict[str, Any] = self.server.answers  # type: ignore[attr-defined]
        answer: dict[str, Any] = {"data": answers} if self.path == "/graphql" else {}
        for query, reason in self.server.refused.items():  # type: ignore[attr-defined]
            if query in body:
                answer = {"data": None, "errors": [{"message": reason}]}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        """Nothing: a test reads what the run says."""


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def wandb_server(
    answers: Mapping[str, Any] | None = None, refused: Mapping[bytes, str] | None = None
) -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """The address of a server, and the requests that it gets: path, headers, body.

    Args:
        answers: by field of a query, beside or instead of those above.
        refused: by a part of a query, the reason.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = requests = []  # type: ignore[attr-defined]
    server.answers = {**ANSWER, **(answers or {})}  # type: ignore[attr-defined]
    server.refused = {**REFUSED, **(refused or {})}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
