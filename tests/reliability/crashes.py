"""From the record of one run, every state in which a crash could have left its disk.

`kill_states` gives the state after every call, and after half of every write: what a SIGKILL leaves.
`power_cut_states` gives what may be left when the machine stops: the contents of a file are sure up to its
last fsync and the names in a folder up to the folder's; of what came later any part may be there, in
any order, by pages of 4 KiB.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import workload

HERE = Path(__file__).parent
PAGE = 4096
ACK = "ack"


@dataclass(frozen=True)
class Call:
    op: str
    path: str
    target: str
    offset: int
    data: bytes


@dataclass
class Node:
    """A file's contents now, and what is sure of them."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    unsynced: list[Call] = field(default_factory=list)


@dataclass
class State:
    """Folders and files at one moment, and how many rows had been reported as durable and appended."""

    what: str
    folders: set[str]
    files: dict[str, bytes]
    durable: int
    appended: int

    def write(self, folder: Path) -> None:
        """Make the state's tree below `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in sorted(self.folders):
            (folder / name).mkdir()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


def record_run(tmp_path: Path, *arguments: str, n_rows: int) -> list[Call]:
    """Run the workload under the recorder; its calls, with paths relative to its folder."""
    library = build_library(HERE / "recorder.c", tmp_path)
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    environment = {"LD_PRELOAD": library, "RECORD_FOLDER": folder, "RECORD_LOG": log}
    command = [sys.executable, HERE / "workload.py", folder / "cache", folder / ACK, str(n_rows), *arguments]
    subprocess.run(
        command, check=True, env=os.environ | {name: str(value) for name, value in environment.items()}
    )
    return list(_read_log(log.read_bytes(), str(folder)))


def build_library(source: Path, tmp_path: Path) -> Path:
    """Compile a library for LD_PRELOAD; the test is skipped where that cannot be done."""
    if sys.platform != "linux":
        pytest.skip("needs LD_PRELOAD")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path / f"{source.stem}.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


def kill_states(calls: list[Call]) -> Iterator[State]:
    """After every call; and before every write of more than a byte, with half of it done."""
    disk = _Disk()
    for number, call in enumerate(calls, 1):
        if call.op == "W" and len(call.data) > 1 and call.path != ACK:
            torn = disk.state(f"half of call {number}")
            half = bytearray(torn.files[call.path])
            _put(half, call.offset, call.data[: len(call.data) // 2])
            torn.files[call.path] = bytes(half)
            yield torn
        disk.apply(call)
        yield disk.state(f"call {number} ({call.op} {call.path})")


def power_cut_states(calls: list[Call], count: int, *, seed: int = 0) -> Iterator[State]:
    """`count` random power cuts at random calls."""
    rng = random.Random(seed)
    cuts = sorted(rng.choices(range(1, len(calls) + 1), k=count))
    disk, number = _Disk(), 0
    for cut in cuts:
        while number < cut:
            disk.apply(calls[number])
            number += 1
        yield disk.cut(rng, f"power cut after call {number}")


def examine(
    states: Iterator[State], folder: Path, *, sabotage: Callable[[], None] | None = None
) -> tuple[int, list[str]]:
    """Number of states, and the complaints about them; `sabotage` is applied to the checking side."""
    if sabotage is not None:
        sabotage()
    count, found = 0, []
    for count, state in enumerate(states, 1):  # noqa: B007
        state.write(folder)
        wrong = workload.complaints(folder / "cache", range(state.durable), range(state.appended))
        found += [f"{state.what}: {what}" for what in wrong]
    return count, found


class _Disk:
    def __init__(self) -> None:
        self.folders: set[str] = set()
        self.files: dict[str, Node] = {}
        self.sure: dict[str, Node | None] = {}  # names that are durable; None is a folder
        self.unsure: list[tuple[str, str, str, Node | None]] = []  # changes of names: op, from, to, what
        self.durable = self.appended = 0

    def apply(self, call: Call) -> None:
        path = call.path
        if path == ACK:
            if call.op == "W":
                self.durable, self.appended = workload.REPORT.unpack(call.data)
            return
        if call.op == "M":
            self.folders.add(path)
            self.unsure.append(("+", path, path, None))
        elif call.op == "D":
            self.folders.discard(path)
            self.unsure.append(("-", path, path, None))
        elif call.op in "OC":
            if path not in self.files:
                self.files[path] = Node()
                self.unsure.append(("+", path, path, self.files[path]))
            elif call.op == "C":
                self._change(Call("T", path, "", 0, b""))
        elif call.op in "WT":
            self._change(call)
        elif call.op == "S":
            self._sync(path)
        elif call.op == "R":
            self.files[call.target] = self.files.pop(path)
            self.unsure.append(("R", path, call.target, self.files[call.target]))
        elif call.op == "U":
            self.files.pop(path, None)
            self.unsure.append(("-", path, path, None))

    def state(self, what: str) -> State:
        files = {path: bytes(node.now) for path, node in self.files.items()}
        return State(what, set(self.folders), files, self.durable, self.appended)

    def cut(self, rng: random.Random, what: str) -> State:
        keep = rng.choice((0.0, 0.3, 0.7, 0.95, 1.0))
        names = dict(self.sure)
        for op, path, target, node in self.unsure:
            if rng.random() < keep:
                _rename(names, op, path, target, node)
        folders, files = set(), {}
        for path, node in sorted(names.items()):
            parent = os.path.dirname(path)
            if parent and parent not in folders:
                continue  # its folder did not outlive the cut
            if node is None:
                folders.add(path)
            else:
                files[path] = _survivor(node, rng, keep)
        return State(f"{what}, keep {keep}", folders, files, self.durable, self.appended)

    def _change(self, call: Call) -> None:
        node = self.files[call.path]
        if call.op == "T":
            _truncate(node.now, call.offset)
        else:
            _put(node.now, call.offset, call.data)
        node.unsynced.append(call)

    def _sync(self, path: str) -> None:
        if path in self.files:
            node = self.files[path]
            node.synced, node.unsynced = bytes(node.now), []
            return
        for change in [change for change in self.unsure if os.path.dirname(change[2]) == path]:
            _rename(self.sure, *change)
            self.unsure.remove(change)


def _rename(names: dict[str, Node | None], op: str, path: str, target: str, node: Node | None) -> None:
    if op in "-R":
        names.pop(path, None)
    if op in "+R":
        names[target] = node


def _survivor(node: Node, rng: random.Random, keep: float) -> bytes:
    """The synced contents and some of what came later, page by page."""
    data = bytearray(node.synced)
    for call in node.unsynced:
        if call.op == "T":
            if rng.random() < keep:
                _truncate(data, call.offset)
            continue
        at, end = call.offset, call.offset + len(call.data)
        while at < end:
            stop = min((at // PAGE + 1) * PAGE, end)
            if rng.random() < keep:
                _put(data, at, call.data[at - call.offset : stop - call.offset])
            at = stop
    return bytes(data)


def _put(data: bytearray, offset: int, part: bytes) -> None:
    data.extend(bytes(max(0, offset + len(part) - len(data))))
    data[offset : offset + len(part)] = part


def _truncate(data: bytearray, length: int) -> None:
    data.extend(bytes(max(0, length - len(data))))
    del data[length:]


def _read_log(log: bytes, folder: str) -> Iterator[Call]:
    at = 0
    head = struct.Struct("<cIIqq")
    while at < len(log):
        op, first, second, offset, length = head.unpack_from(log, at)
        at += head.size
        path, target = log[at : at + first].decode(), log[at + first : at + first + second].decode()
        at += first + second
        data = log[at : at + length] if op == b"W" else b""
        at += len(data)
        path, target = (name.removeprefix(folder).lstrip("/") for name in (path, target))
        yield Call(op.decode(), path, target, offset, data)
