"""Every state that a crash can leave: SIGKILL at any call, half-done writes, power cuts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import workload
from crashes import Call, examine, kill_states, power_cut_states, record_run

N_ROWS = 13 * workload.COMMIT


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls of a run with 13 commits, during which small segments are packed twice."""
    return record_run(tmp_path_factory.mktemp("recorded"), "--pack-every", "5", n_rows=N_ROWS)


def test_the_recorded_run_commits_at_least_12_times(calls: list[Call]) -> None:
    published = [call for call in calls if call.op == "R" and "/seg-" in call.target]
    assert len(published) >= 12 + 2
    assert sum(call.op == "U" for call in calls) >= 10  # packed segments go
    assert sum(call.op == "S" for call in calls) >= 2 * len(published)


def test_a_kill_at_any_call_or_in_any_write_loses_nothing(calls: list[Call], memory_folder: Path) -> None:
    count, found = examine(kill_states(calls), memory_folder / "state")
    assert found == []
    print(f"\n{count} states after a kill: every call of {len(calls)}, and half of every write")


def test_40_power_cuts_lose_nothing(calls: list[Call], memory_folder: Path) -> None:
    count, found = examine(power_cut_states(calls, 40), memory_folder / "state")
    assert (count, found) == (40, [])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 6))
def test_500_power_cuts_lose_nothing(calls: list[Call], memory_folder: Path, seed: int) -> None:
    count, found = examine(power_cut_states(calls, 500, seed=seed), memory_folder / "state")
    assert (count, found) == (500, [])
    print(f"\n{count} power cuts with seed {seed}: 0 durable rows lost, 0 wrong")


def test_without_fsync_the_power_cuts_are_noticed(tmp_path: Path, memory_folder: Path) -> None:
    calls = record_run(tmp_path, "--sabotage", "no-fsync", n_rows=N_ROWS)
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
        for state in islice(kill_states(calls), len(calls) // 2, None, 20):
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
