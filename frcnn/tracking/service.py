"""The end of W&B's service: one that does not answer must not hold a run.

W&B's service is a process of its own, which W&B waits for without a limit, also at exit.
"""

from contextlib import suppress

from frcnn.time_limit import within

TEARDOWN_SECONDS = 5.0


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
