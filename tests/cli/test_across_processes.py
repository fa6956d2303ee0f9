"""What goes from one process to another."""

from __future__ import annotations

import pickle

from lalic.errors import CheckpointError, ImageError, RequestError
from lalic.eval.codecs import NotInstalled
from lalic.files import WouldOverwrite
from lalic.shards import Stopped
from lalic_kernels import BackendUnavailable


def test_errors_come_whole_out_of_other_processes():
    """A pool of processes waits for ever for an error that cannot be unpickled."""
    for error in (
        WouldOverwrite("a.png"), ImageError("a"), CheckpointError("b"), RequestError("c"), Stopped(),
        BackendUnavailable("d"), NotInstalled("e"),
    ):  # fmt: skip
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == str(error) and again.args == error.args
    assert pickle.loads(pickle.dumps(WouldOverwrite("a.png"))).filename == "a.png"
