"""What the protocol fixes for the runs of tuning and test, and whether rows keep to it."""

from collections.abc import Mapping, Sequence

from experiments.report.runs import Run
from experiments.which_sampler.choose import PRESET as PRESET_SETTING
from experiments.which_sampler.choose import values_of

PRESET = "preset"  # random sampling that is not tuned
TUNING_STEPS = "400"
STEPS = {"slim": "600", "lite0": "400"}  # of the test, by network
CLIP = {"slim": "None", "lite0": "35"}
ALIKE = ("commit", "instructions", "threads", "torch")  # the same for all runs of a part


def check_tuning(runs: Sequence[Run]) -> None:
    """Refuse tuning runs that are not those of the protocol.

    Raises:
        LookupError: as ``check_test``.
    """
    _check_made(runs)
    for run in runs:
        own = {"net": "slim", "trainer.max_steps": TUNING_STEPS, "seed": "0"}
        _check(run, own | {"trainer.clip_norm": CLIP["slim"]} | values_of(run.settings["setting"]))


def check_test(runs: Sequence[Run], chosen: Mapping[tuple[str, str], str]) -> None:
    """Refuse test runs that are not those of the protocol.

    Args:
        chosen: the setting of each set and arm.

    Raises:
        LookupError: runs are of several commits, of one with changes, or of several processor
            instructions, numbers of threads or versions of PyTorch; or a run has other steps,
            another clipping, seed or setting.
    """
    _check_made(runs)
    for run in runs:
        net, case = run.settings["net"], case_of(run)
        setting = PRESET_SETTING if case[1] == PRESET else chosen[case]
        own = {"trainer.max_steps": STEPS[net], "trainer.clip_norm": CLIP[net]}
        _check(run, own | {"seed": run.settings["data.fold"]} | values_of(setting))


def case_of(run: Run) -> tuple[str, str]:
    """The set and the arm of a test run."""
    name, _, arm = run.settings["case"].partition("_")
    return name, arm


def _check_made(runs: Sequence[Run]) -> None:
    for key in ALIKE:
        found = sorted({run.made.get(key) or "unknown" for run in runs})
        if len(found) > 1 or any(text in found[0] for text in ("unknown", "changes", ",")):
            raise LookupError(f"runs have not one known value of {key}: {', '.join(found)}")


def _check(run: Run, expected: Mapping[str, str]) -> None:
    for key, value in expected.items():
        if run.settings[key] != value:
            raise LookupError(f"{run.name} has {key}={run.settings[key]}, the protocol {value}")
