"""Runs a function of a test module in several processes that are joined as torchrun joins them."""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent.parent


def on_ranks(count, function, *arguments, expect=0, seconds=170, join=True):
    """What `function(ranks, *arguments)` returns on each rank; it stands at the top of a module of this folder.

    A function that joins the ranks itself, where `join` is False, gets the arguments alone.
    With `expect`, the exit code that every rank is to have, or each one's, what they said on stderr is returned.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call"
        call.write_bytes(pickle.dumps((function.__module__.split(".")[-1], function.__name__, arguments, join)))
        processes = [_start(rank, count, free, call) for free in [free_port()] for rank in range(count)]
        try:
            said = [p.communicate(timeout=seconds)[1] for p in processes]
        finally:
            for process in processes:
                process.kill()
        codes = [p.returncode for p in processes]
        expected = expect if isinstance(expect, list) else [expect] * count
        assert codes == expected, "\n".join([str(codes), *said])
        if expect:
            return said
        return [pickle.loads(Path(f"{call}.{rank}").read_bytes()) for rank in range(count)]


def _start(rank, count, port, call):
    env = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    folders = [TESTS, TESTS / "distributed", TESTS / "benchmark", TESTS.parent, os.environ.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(map(str, folders)).rstrip(os.pathsep)
    command = [sys.executable, __file__, str(call)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _run(call):
    import importlib

    import torch

    from hesscli.distributed import joined
    from hesscli.errors import HessError

    torch.set_num_threads(1)
    module, name, arguments, join = pickle.loads(Path(call).read_bytes())
    function, result = getattr(importlib.import_module(module), name), Path(f"{call}.{os.environ['RANK']}")
    if not join:
        result.write_bytes(pickle.dumps(function(*arguments)))
        return
    try:
        with joined(wanted=True) as ranks:
            result.write_bytes(pickle.dumps(function(ranks, *arguments)))
    except HessError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _run(sys.argv[1])
