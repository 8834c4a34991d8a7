"""Calls of W&B with a time limit: a server or a service that does not answer must not hold a run.

W&B's service is a process of its own, which W&B waits for without a limit, also at exit.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

TEARDOWN_SECONDS = 5.0


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What ``call`` returns or raises; it goes on in a thread where it takes longer.

    Raises:
        TimeoutError: it did not end in time.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no end within {seconds:g} s")
    return results[0]


def end_service() -> None:
    """Kill W&B's service of this process, so that nothing waits for it; the next run gets another.

    What a run has sent is in its file by then, up to the last tenth of a second.
    """
    import wandb
    from wandb.sdk import wandb_setup

    connection = getattr(wandb_setup.singleton(), "_connection", None)
    process = getattr(getattr(connection, "_proc", None), "_process", None)
    if process is not None:
        process.kill()
    # It fails or exits with the killed process's code, but it takes back what W&B would do at exit.
    with suppress(Exception, SystemExit):
        within(TEARDOWN_SECONDS, wandb.teardown)
