"""`lalic bulk` with real executors: processes and Ray give what one process gives, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import astronaut, save, tiny

from lalic import bulk

pytestmark = pytest.mark.slow
pytest.importorskip("fsspec", reason="needs the package fsspec")

ROOT = Path(__file__).parents[2]
COUNT, SIZES = 40, [(64, 64), (128, 96), (96, 64)]
OPTIONS = {"checkpoint": "tiny.pth", "shard": 4, "quality": 40.0, "psnr": True}
WORDS = ["--checkpoint", "tiny.pth", "--shard", "4", "--quality", "40", "--psnr", "--workers", "2"]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A folder with tiny.pth, photos/ of `COUNT` crops and one file that is no picture, and what one process makes."""
    folder = tmp_path_factory.mktemp("bulk")
    save(folder / "tiny.pth", tiny(qualities=4))
    (folder / "photos").mkdir()
    for i in range(COUNT):
        astronaut(8 * i, 5 * i, *SIZES[i % len(SIZES)]).save(folder / "photos" / f"{i:02d}.png")
    (folder / "photos" / "bad.png").write_bytes(b"no picture")
    bulk.compress(folder / "photos", folder / "one", **OPTIONS | {"checkpoint": folder / "tiny.pth"}, workers=1)
    return folder


@pytest.fixture
def here(crops, monkeypatch):
    """The working folder is that of `crops`; the name of a target of one's own."""
    monkeypatch.chdir(crops)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return f"out-{next(_numbers)}"


_numbers = itertools.count()


def tree(folder) -> dict[str, bytes]:
    """The files below a folder, without those that SIGKILL left before they were renamed."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and ".lalic-part" not in path.name]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def parts(folder) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if ".lalic-part" in path.name]


def manifests(folder) -> int:
    return len(list(Path(folder, "_bulk").glob("*.jsonl")))


def command(target, *words) -> subprocess.Popen:
    """`lalic bulk` in a process group of its own, which heeds Ctrl-C even where these tests run in the background."""
    line = [sys.executable, "-m", "lalic", "bulk", "photos", target, *WORDS, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, stderr=pipe, stdout=pipe, text=True, start_new_session=True, preexec_fn=heed_ctrl_c)


def heed_ctrl_c() -> None:
    """A shell starts what it puts in the background with this signal ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(condition, process=None, seconds=120) -> bool:
    """Wait until a condition holds; False if the process ended before."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.002)
    return True


# Processes


def test_processes_give_the_bytes_of_one(here):
    done = bulk.compress("photos", here, **OPTIONS, workers=2)
    assert sorted(each.index for each in done) == list(range(11)) and sum(each.coded for each in done) == COUNT + 1
    assert tree(here) == tree("one")
    done = bulk.compress("photos", here, **OPTIONS, workers=2)
    assert sum(each.coded for each in done) == 1  # the one that failed
    assert tree(here) == tree("one")


def test_killed_at_random_moments(here):
    """The whole group is killed, five times; what is finished stays."""
    moments, killed = random.Random(0), 0
    for goal in (0, 1, 3, 6, 9):
        process = command(here)
        if wait_for(lambda goal=goal: manifests(here) >= goal, process):
            time.sleep(moments.uniform(0, 3 if goal == 0 else 0.1))
            killed += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for name, data in tree(here).items():
            assert data == tree("one")[name], name
    assert killed >= 3
    process = command(here)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "1 pictures failed, 0 shards were not done" in errors
    assert tree(here) == tree("one")


def test_workers_end_when_their_parent_is_killed(here):
    process = command(here)
    assert wait_for(lambda: manifests(here) >= 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs /proc")
    workers = [int(word) for word in children.read_text().split()]
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    wait_for(lambda: not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers), seconds=60)


@pytest.mark.parametrize(
    ("number", "group", "code", "word"),
    [
        (signal.SIGTERM, False, 143, "terminated"),  # as of any command: 128 and the number of the signal
        (signal.SIGTERM, True, 143, "terminated"),
        (signal.SIGHUP, True, 129, "terminated"),
        (signal.SIGINT, True, 130, "interrupted"),
    ],
)
def test_a_signal_leaves_nothing_half_written(here, number, group, code, word):
    process = command(here)
    assert wait_for(lambda: manifests(here) >= 1, process)
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code and errors.strip().endswith(f"lalic: {word}") and "Traceback" not in errors
    assert parts(here) == [] and manifests(here) < 11
    for name, data in tree(here).items():
        assert data == tree("one")[name], name


def test_a_worker_that_is_killed_is_replaced(here):
    killed = []

    def progress(done, count):
        alive = [child.pid for child in multiprocessing.active_children() if child.pid not in killed]
        if alive and len(killed) < 3:
            os.kill(alive[0], signal.SIGKILL)
            killed.append(alive[0])

    done = bulk.compress("photos", here, **OPTIONS, workers=2, progress=progress)
    assert len(killed) == 3
    assert sorted(each.index for each in done) == list(range(11)) and all(each.error is None for each in done)
    assert tree(here) == tree("one")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_shard_that_kills_its_workers_does_not_stop_the_others(here):
    """One picture is a pipe: who reads it is killed, as the system kills for lack of memory."""
    fifo = Path("stuck.png").absolute()
    os.mkfifo(fifo)
    names = [f"photos/{i:02d}.png" for i in range(8)]
    Path("list.txt").write_text("\n".join([*names[:4], "stuck.png", *names[4:]]))
    end = threading.Event()

    def reads_it(pid) -> bool:
        return any(os.path.realpath(fd) == str(fifo) for fd in Path(f"/proc/{pid}/fd").glob("*"))

    def kill() -> None:
        while not end.wait(0.1):
            with contextlib.suppress(OSError):  # nobody reads it
                writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
                wait_for(lambda: any(reads_it(child.pid) for child in multiprocessing.active_children()), seconds=20)
                for child in multiprocessing.active_children():
                    if reads_it(child.pid):
                        child.kill()
                os.close(writer)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        done = bulk.compress("list.txt", here, **OPTIONS, workers=2)
    finally:
        end.set()
        killer.join()
        fifo.unlink()
    errors = {each.index: each.error for each in done}
    assert errors == {0: None, 1: "its worker died 3 times (killed, or too little memory)", 2: None}
    assert manifests(here) == 2


# Ray


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="needs the package ray")
    yield ray
    ray.shutdown()


def test_ray_gives_the_bytes_of_one_process(here, ray):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)

    def interrupt(done, count):
        if manifests(here) >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.compress("photos", here, **OPTIONS, executor="ray", progress=interrupt)
    assert tree(here).items() <= tree("one").items() and parts(here) == []
    before = manifests(here)
    assert 3 <= before < 11
    done = bulk.compress("photos", here, **OPTIONS, executor="ray")
    assert sum(each.pictures for each in done) == COUNT + 1 and all(each.error is None for each in done)
    assert sum(each.coded == each.pictures for each in done) == 11 - before
    assert tree(here) == tree("one")
    done = bulk.compress("photos", here, **OPTIONS, executor="ray")
    assert sum(each.coded for each in done) == 1 and tree(here) == tree("one")


def test_a_cluster_that_loses_one_of_two_workers(here, ray):
    """Nothing is lost, and nothing is there twice."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()

        def progress(done, count):
            if len(nodes) == 2 and manifests(here) >= 2:
                cluster.remove_node(nodes.pop(), allow_graceful=False)  # kills its processes

        done = bulk.compress("photos", here, **OPTIONS, executor="ray", progress=progress)
        assert len(nodes) == 1
        assert sorted(each.index for each in done) == list(range(11))
        assert all(each.error is None for each in done)
        assert sum(each.pictures for each in done) == COUNT + 1
        assert tree(here) == tree("one")
        paths = [json.loads(line)["path"] for f in sorted(Path(here, "_bulk").glob("*.jsonl")) for line in f.open()]
        assert len(paths) == len(set(paths)) == COUNT + 1
    finally:
        ray.shutdown()
        cluster.shutdown()
