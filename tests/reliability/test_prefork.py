"""A pre-forking server: the model is loaded and used before the fork, and workers answer requests."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import apart
import pytest

import featx
from featx import FeatureExtractor, ImageClassifier


def serve(model: str, photo: str, workers: int, port: Path) -> None:
    """Load and use a model, fork, and answer requests; the port is written to a file."""
    os.setsid()
    clf = featx.load(model)
    clf.predict([photo])  # warm, as a server that preloads its application is
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    for _ in range(workers):
        if os.fork() == 0:
            while True:
                connection, _ = listening.accept()
                with connection, connection.makefile("rw") as stream:
                    path = stream.readline().strip()
                    memory = int(Path("/proc/self/statm").read_text().split()[1])
                    memory *= os.sysconf("SC_PAGE_SIZE")
                    stream.write(f"{clf.predict([path])[0]} {os.getpid()} {memory}\n")
    port.with_suffix(".new").write_text(str(listening.getsockname()[1]))
    port.with_suffix(".new").rename(port)
    for _ in range(workers):
        os.wait()


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


@pytest.fixture
def model(class_folders: Path, tmp_path: Path) -> Path:
    clf = ImageClassifier("test_resnet", cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=1)
    clf.set_params(cv=2, store="memory", extractor=FeatureExtractor(pretrained=False, input_size=32))
    return clf.fit(class_folders).save(tmp_path / "m.featx")


def _serve(model: Path, photos: list[Path], *, workers: int, requests: int) -> list[tuple[str, str, int]]:
    """The answers of a server: label, worker and its memory, in the order of the photos."""
    found = model.with_name("port")
    server = apart.start(serve, str(model), str(photos[0]), workers, found)
    answers: list[Any] = [None] * requests
    try:
        while not found.exists():
            assert server.is_alive()
            time.sleep(0.02)
        port = int(found.read_text())

        def ask(first: int) -> None:
            for number in range(first, requests, workers):
                with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                    connection.sendall(f"{photos[number % len(photos)]}\n".encode())
                    label, worker, memory = connection.makefile().readline().split()
                    answers[number] = label, worker, int(memory)

        clients = [threading.Thread(target=ask, args=(first,)) for first in range(workers)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    finally:
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
        server.join()
    return answers


def _check(model: Path, class_folders: Path, *, workers: int, requests: int) -> None:
    from featx import load

    photos = sorted(class_folders.glob("*/*.png"))
    expected = load(model).predict(photos).tolist()
    answers = _serve(model, photos, workers=workers, requests=requests)
    assert all(answers), "a worker did not answer"
    assert [label for label, _, _ in answers] == [expected[n % len(photos)] for n in range(requests)]
    by_worker: dict[str, list[int]] = {}
    for _, worker, memory in answers:
        by_worker.setdefault(worker, []).append(memory)
    print(json.dumps({worker: [len(m), m[0] >> 20, m[-1] >> 20] for worker, m in by_worker.items()}))
    assert len(by_worker) == workers
    for memory in by_worker.values():
        settled = memory[len(memory) // 4]  # the first answers compile the network
        assert memory[-1] - settled < 16 << 20


def test_workers_that_were_forked_from_a_warm_model_answer(model: Path, class_folders: Path) -> None:
    _check(model, class_folders, workers=2, requests=40)


@pytest.mark.slow
def test_four_workers_answer_a_thousand_requests_with_flat_memory(model: Path, class_folders: Path) -> None:
    _check(model, class_folders, workers=4, requests=1000)
