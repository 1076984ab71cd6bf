"""Every state that a crash can leave: SIGKILL at any call, half-done writes, power cuts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import workload
from crashes import Call, examine, kill_states, power_cut_states, record_run

SHORT, LONG = 5, 13
"""Commits of the recorded runs; small segments are packed on the way."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls of a short run."""
    return recorded(tmp_path_factory.mktemp("short"), SHORT)


@pytest.fixture(scope="module")
def many_calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls of a long run."""
    return recorded(tmp_path_factory.mktemp("long"), LONG)


def recorded(folder: Path, commits: int) -> list[Call]:
    calls = record_run(folder, "--pack-every", str(commits // 2), n_rows=commits * workload.COMMIT)
    published = [call for call in calls if call.op == "R" and "/seg-" in call.target]
    assert len(published) == commits + 2  # commits, and two packed ones
    assert (
        sum(call.op == "U" and "/seg-" in call.path for call in calls) >= commits - 1
    )  # those that they replace
    return calls


def test_a_kill_at_any_call_or_in_any_write_loses_nothing(calls: list[Call], memory_folder: Path) -> None:
    _, found = examine(kill_states(calls), memory_folder / "state")
    assert found == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_any_call_of_a_long_run_loses_nothing(many_calls: list[Call], memory_folder: Path) -> None:
    count, found = examine(kill_states(many_calls), memory_folder / "state")
    assert found == []
    print(f"\n{count} states after a kill ({len(many_calls)} calls, half of every write): nothing lost")


def test_40_power_cuts_lose_nothing(calls: list[Call], memory_folder: Path) -> None:
    count, found = examine(power_cut_states(calls, 40), memory_folder / "state")
    assert (count, found) == (40, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 6))
def test_500_power_cuts_lose_nothing(many_calls: list[Call], memory_folder: Path, seed: int) -> None:
    count, found = examine(power_cut_states(many_calls, 500, seed=seed), memory_folder / "state")
    assert (count, found) == (500, [])
    print(f"\n{count} power cuts with seed {seed}: 0 durable rows lost, 0 wrong")


def test_without_fsync_the_power_cuts_are_noticed(tmp_path: Path, memory_folder: Path) -> None:
    calls = record_run(tmp_path, "--sabotage", "no-fsync", n_rows=SHORT * workload.COMMIT)
    assert not any(call.op == "S" for call in calls)
    _, found = examine(power_cut_states(calls, 40), memory_folder / "state")
    assert any("durable rows are lost" in what for what in found)


def test_without_the_checksum_a_flipped_row_is_noticed(
    calls: list[Call], memory_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import featx.stores.segments

    monkeypatch.setattr(
        featx.stores.segments, "check_sum", featx.stores.segments.check_sum
    )  # put back afterwards

    def rotten() -> Iterator[object]:
        for state in islice(kill_states(calls), len(calls) // 2, None, 10):
            for path, data in state.files.items():
                if "/seg-" in path:
                    state.files[path] = data[:-4200] + bytes([data[-4200] ^ 16]) + data[-4199:]
                    break
            yield state

    _, noticed = examine(
        rotten(), memory_folder / "state"
    )  # as it is: set aside, which a power cut must not cause
    assert noticed
    assert not any("a row is wrong" in what for what in noticed)
    _, found = examine(rotten(), memory_folder / "state", sabotage=workload.sabotage_checksum)
    assert any("a row is wrong" in what for what in found)
