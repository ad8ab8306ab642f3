"""kill -9: at random moments, and before each file that a stage writes, renames or removes."""

import random
import shutil
import signal
from collections.abc import Iterator

import pytest

STAGES = ("dense", "prune", "retrain", "quantize", "choose")
KILLED = -signal.SIGKILL


def killed_at_moments(chain, before, name: str, kills: int) -> None:
    """Kill a stage that begins anew `kills` times, each time at another moment, and mend it."""
    moments, number, tries = random.Random(name), 0, 0
    longest = 0.9 * chain.seconds[name]
    while number < kills:
        tries += 1
        assert tries < 3 * kills + 10, f"{name} is too often over before its kill"
        folder = before(name, tries)
        moment = moments.uniform(0, longest)
        status, printed = chain.run(name, folder, seconds=moment)
        assert status in (0, KILLED), printed
        if status == KILLED:
            number += 1
        else:  # the undisturbed run was slower, as on a machine that had other work
            longest = moment
        chain.mended(name, folder)
        shutil.rmtree(folder)


def killed_at_files(chain, before, name: str, events: Iterator[int]) -> int:
    """Kill a stage before its n-th change to a file, for each n, and mend it; how many kills."""
    kills = 0
    for event in events:
        folder = before(name, event)
        status, printed = chain.run(name, folder, event=event)
        assert status in (0, KILLED), printed
        if status == KILLED:
            kills += 1
            chain.mended(name, folder)
        shutil.rmtree(folder)
        if status == 0:
            break
    return kills


@pytest.mark.parametrize("name", STAGES)
def test_a_kill_at_a_random_moment_changes_no_result(chain, before, name) -> None:
    killed_at_moments(chain, before, name, 1)


@pytest.mark.parametrize("name", STAGES)
def test_a_kill_before_a_change_to_a_file_changes_no_result(chain, before, name) -> None:
    chosen = sorted(random.Random(name).sample(range(8), 2))
    assert killed_at_files(chain, before, name, iter(chosen)) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_twenty_kills_at_random_moments_change_no_result(chain, before, name) -> None:
    killed_at_moments(chain, before, name, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_a_kill_before_every_change_to_a_file_changes_no_result(chain, before, name) -> None:
    kills = killed_at_files(chain, before, name, iter(range(200)))
    print(f"{name}: killed before each of {kills} changes to files")
    assert 8 <= kills < 200


def test_a_stage_killed_again_and_again_comes_to_its_end(chain, before) -> None:
    folder, attempts = before("dense"), 0
    while chain.run("dense", folder, event=14)[0] == KILLED:  # a state or two later
        attempts += 1
        assert attempts < 10, "it never gets further"
    assert attempts > 1
    chain.is_equal("dense", folder)
