"""Small files are decoded in processes: the same arrays and errors as without, whatever happens to the processes."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xmodal_jax.data import BadExampleError, BadExamples, decode_processes, row_decoder
from xmodal_jax.data.decode_file import MediaOptions, decode_file
from xmodal_jax.data.decode_processes import DecodeProcesses, File
from xmodal_jax.data.decode_worker import read_message, write_message
from xmodal_jax.data.pipeline import Loader
from xmodal_jax.data.sources.folder import FolderSource
from xmodal_jax.data.sources.parquet import ParquetSource

ROWS, OPTIONS = 150, MediaOptions(12)


def encode(i: int) -> bytes:
    """An image of another size and format for each number."""
    pixels = np.random.default_rng(i).integers(0, 256, (14 + i % 5, 17, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, ("PNG", "JPEG", "BMP")[i % 3])
    return file.getvalue()


def write_parquet(path, files):
    pq.write_table(pa.table({"image": files, "text": [f"picture {i}" for i in range(len(files))]}), path)
    return path


@pytest.fixture
def new_processes(monkeypatch):
    """A function that puts a `DecodeProcesses` without workers in the place of the program's, on a machine of two cores
    on which no file takes long."""
    created = []

    def replace():
        created.append(DecodeProcesses())
        monkeypatch.setattr(decode_processes, "processes", created[-1])
        return created[-1]

    monkeypatch.setattr(row_decoder, "_available_cores", lambda: 2)
    monkeypatch.setattr(row_decoder, "FAST_SECONDS", 10.0)
    yield replace
    for each in created:
        each.close()


@pytest.fixture
def processes(new_processes):
    """Two workers that are ready, in place of the program's."""
    with_processes = new_processes()
    with_processes.start(2)
    wait_for(lambda: with_processes.ready)
    return with_processes


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read(path, kept, count=5, **options):
    """The first batches of a Parquet file, its files kept in memory or decoded for each batch."""
    limit = {} if kept else {"memory_limit": 1, "check_files": False}
    source = ParquetSource(path, "all", progress=False, image_size=12, **limit, **options)
    assert source.in_memory == kept
    loader = Loader(source, batch_size=31, seed=0)
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def count_requests(processes, monkeypatch):
    """A list that grows with each request to ``processes``, by the number of its files."""
    counts, decode = [], processes.decode
    monkeypatch.setattr(
        processes, "decode", lambda files, options: counts.append(len(files)) or decode(files, options)
    )
    return counts


@pytest.mark.parametrize("kept", [True, False])
def test_processes_threads_and_neither_give_the_same_batches(
    tmp_path, processes, new_processes, monkeypatch, kept
):
    path = write_parquet(tmp_path / "train.parquet", [encode(i) for i in range(ROWS)])
    counts = count_requests(processes, monkeypatch)
    in_processes = read(path, kept, workers=2)
    assert sum(counts) >= ROWS - row_decoder.PROBED_ROWS
    others = new_processes()
    assert_same(in_processes, read(path, kept, workers=1))
    monkeypatch.setattr(row_decoder, "FAST_SECONDS", 0.0)
    assert_same(in_processes, read(path, kept, workers=2))
    assert not others.pids


@pytest.mark.parametrize("kept", [True, False])
def test_a_bad_file_is_the_same_bad_example(tmp_path, processes, kept):
    files = [encode(i) for i in range(90)]
    files[40], files[61], files[75] = b"no image", files[60][:-9], b""
    path = write_parquet(tmp_path / "train.parquet", files)
    found, batches = [], []
    for workers in (1, 2):
        bad = BadExamples("skip")
        batches.append(read(path, kept, bad_examples=bad, workers=workers))
        found.append((sorted(bad.items), bad.summary()))
        with pytest.raises(BadExampleError, match=r"train\.parquet:\d+: the image cannot be decoded"):
            read(path, kept, workers=workers)
    assert found[0][0] == found[1][0] and len(found[0][0]) == 3
    assert_same(*batches)


def test_files_of_a_folder_are_read_by_the_workers(tmp_path, processes, monkeypatch):
    counts = count_requests(processes, monkeypatch)
    for i in range(40):
        (tmp_path / f"é{i}.png").write_bytes(encode(3 * i))
    lines = [f'{{"file_name": "é{i}.png", "text": "{i}"}}' for i in range(40)]
    lines[30] = '{"file_name": "absent.png", "text": "30"}'
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path.parent)
    bad = BadExamples("skip")
    source = FolderSource(tmp_path.name, "all", progress=False, workers=2, image_size=12, bad_examples=bad)
    assert sum(counts) == 40 - row_decoder.PROBED_ROWS and len(source) == 39
    assert [(b.line, b.reason) for b in bad.items] == [
        (31, "the file 'absent.png' does not exist in " + tmp_path.name)
    ]
    np.testing.assert_array_equal(
        source.batch(np.array([38]))["image"][0], decode_file("image", encode(3 * 39), OPTIONS)[0]
    )


@pytest.mark.parametrize("moment", ["before", "during"])
def test_the_work_of_a_killed_worker_is_done_again(processes, moment):
    files = [File("image", encode(i)) for i in range(40)]
    expected = [decode_file("image", file.content, OPTIONS)[0] for file in files]
    before = processes.pids
    if moment == "before":
        for pid in before:
            os.kill(pid, signal.SIGKILL)
    else:
        os.kill(before[0], signal.SIGSTOP)  # which takes the next request, and never answers
        killer = subprocess.Popen(
            [sys.executable, "-c", f"import os, time; time.sleep(0.2); os.kill({before[0]}, 9)"]
        )
    for _ in range(3):
        for (array, was_cut), other in zip(processes.decode(files, OPTIONS), expected, strict=True):
            np.testing.assert_array_equal(array, other)
            assert not was_cut
    if moment == "during":
        assert killer.wait() == 0
    assert processes.pids != before and all(map(is_alive, processes.pids))


def test_signals_for_the_whole_group_do_not_end_workers(processes):
    for pid in processes.pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    before = processes.pids
    for _ in range(2):
        assert processes.decode([File("image", encode(0))], OPTIONS)[0] is not None
    assert processes.pids == before


def test_a_file_that_ends_its_worker_is_named(tmp_path, new_processes, monkeypatch):
    """Rather than to end the program, or to wait for an answer that never comes."""
    crash = (
        "import sys, os; sys.path[:] = sys.argv[1:]\n"
        "from xmodal_jax.data import decode_worker as worker\n"
        "decode = worker.decode_file\n"
        "worker.decode_file = lambda kind, file, options: os.abort() if file == b'crash' else "
        "decode(kind, file, options)\n"
        "worker.main()"
    )
    monkeypatch.setattr(decode_processes, "WORKER_PROGRAM", crash)
    processes = new_processes()
    processes.start(2)
    wait_for(lambda: processes.ready)
    files = [encode(i) for i in range(40)]
    path = write_parquet(tmp_path / "train.parquet", [*files[:29], b"crash", *files[30:]])
    with pytest.raises(OSError, match=r"train\.parquet:30: the process that decoded .* SIGABRT, twice"):
        read(path, True, workers=2)
    assert (
        processes.decode([File("image", files[0])] * 3, OPTIONS)[2] is not None
    )  # and the next file is decoded


def test_workers_end_with_their_parent():
    """Also with one that is killed and cleans nothing up."""
    program = (
        "import os, time\n"
        "from xmodal_jax.data.decode_processes import processes\n"
        "processes.start(2)\n"
        "while not processes.ready: time.sleep(0.005)\n"
        "print(*processes.pids, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60)
    pids = [int(pid) for pid in run.stdout.split()]
    assert run.returncode == -signal.SIGKILL and len(pids) == 2
    wait_for(lambda: not any(map(is_alive, pids)), seconds=10.0)


def test_few_files_start_no_processes(tmp_path, new_processes, monkeypatch):
    monkeypatch.setattr(row_decoder, "PROCESSES_PAY_AFTER", 10.0)
    processes = new_processes()
    path = write_parquet(tmp_path / "train.parquet", [encode(i) for i in range(ROWS)])
    expected = read(path, False, workers=2)
    read(path, True, workers=2)
    assert not processes.pids
    monkeypatch.setattr(row_decoder, "PROCESSES_PAY_AFTER", 1e-4)
    read(path, False, workers=1)
    assert not processes.pids
    assert_same(read(path, False, workers=2), expected)  # while they start
    assert len(processes.pids) == 2
    wait_for(lambda: processes.ready)


def test_processes_that_cannot_be_started_are_done_without(tmp_path, new_processes, monkeypatch):
    monkeypatch.setattr(row_decoder, "PROCESSES_PAY_AFTER", 0.0)
    path = write_parquet(tmp_path / "train.parquet", [encode(i) for i in range(ROWS)])
    for name, value in (("WORKER_PROGRAM", "raise SystemExit(3)"), ("sys.executable", "/nonexistent/python")):
        processes = new_processes()
        monkeypatch.setattr(f"xmodal_jax.data.decode_processes.{name}", value)
        assert len(read(path, True, workers=2)) == 5
        wait_for(lambda processes=processes: not processes._starting)
        assert not processes.ready and len(read(path, False, workers=2)) == 5


def test_a_warning_or_a_large_image_is_left_to_the_parent(processes, monkeypatch):
    file = File("image", encode(0))
    assert processes.decode([file], OPTIONS)[0] is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # of 238: Pillow warns
    assert processes.decode([file], OPTIONS) == [None]
    monkeypatch.undo()
    large = io.BytesIO()
    Image.new("L", (5800, 5800)).save(large, "PNG")
    assert processes.decode([File("image", large.getvalue())], OPTIONS) == [None]


def test_messages_arrive_as_they_were_sent():
    stream, array = io.BytesIO(), np.arange(12, dtype=np.int16).reshape(3, 4)
    write_message(stream, {"a": [np.int64(1), None, "é"]}, [b"", b"abc", array])
    write_message(stream, "ready")
    stream.seek(0)
    header, contents = read_message(stream)
    assert header == {"a": [1, None, "é"]} and [*map(bytes, contents)] == [b"", b"abc", array.tobytes()]
    assert read_message(stream) == ("ready", [])
    for end in (0, 2, 20):
        with pytest.raises(EOFError):
            read_message(io.BytesIO(stream.getvalue()[:end]))


def test_workers_import_no_jax():
    program = "import sys, xmodal_jax.data.decode_worker; print(*sorted({'jax', 'flax', 'pyarrow'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        == "\n"
    )
