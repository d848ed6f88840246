"""Python scripts as processes of their own, with a time limit that ends the whole group and tells what it printed."""

import os
import signal
import subprocess
import sys

import pytest

LEFT_OUT = ("LOCAL_RANK", "RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")


def start(*command):
    """Start ``python *command`` in a group of its own; its output comes through one pipe."""
    environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def kill(process):
    """End the whole group, the hard way."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def finish(*processes, seconds=200):
    """Wait for all of them; fail with their last words if one hangs or fails. Nothing is left running."""
    try:
        words = [process.communicate(timeout=seconds)[0][-3000:] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            kill(process)
        pytest.fail("Still running after the time limit:\n" + "\n".join(p.communicate()[0][-3000:] for p in processes))
    finally:
        for process in processes:
            kill(process)
    for process, said in zip(processes, words, strict=True):
        assert process.returncode == 0, said
