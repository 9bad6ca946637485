"""Runs a function of a test module in several processes that are joined as torchrun joins them."""

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import contextmanager, nullcontext, suppress
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
        command = [sys.executable, __file__, str(call), str(count)]
        with subprocess.Popen(command, env=_environment(), start_new_session=True) as parent:
            try:
                assert parent.wait(timeout=seconds) == 0
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(parent.pid, signal.SIGKILL)
        said = [Path(f"{call}.said.{rank}").read_text() for rank in range(count)]
        codes = pickle.loads(Path(f"{call}.codes").read_bytes())
        expected = expect if isinstance(expect, list) else [expect] * count
        assert codes == expected, "\n".join([str(codes), *said])
        if expect:
            return said
        return [pickle.loads(Path(f"{call}.{rank}").read_bytes()) for rank in range(count)]


def in_shells(place, calls, *, seconds=500):
    """What `spawned_launches.in_shell(place, *arguments)` returns, by name of the call: one after the other."""
    call = Path(place) / "call"
    call.write_bytes(pickle.dumps((str(place), calls)))
    command = [sys.executable, str(Path(__file__).with_name("spawned_launches.py")), str(call)]
    subprocess.run(command, cwd=place, env=_environment(), check=True, timeout=seconds)
    return pickle.loads(Path(f"{call}.found").read_bytes())


@contextmanager
def under_torchrun(place, count, function, *arguments):
    """torchrun itself, with `function(ranks, *arguments)` in so many processes, while the block lasts."""
    call = Path(place) / "call"
    call.write_bytes(pickle.dumps((function.__module__, function.__name__, arguments, True)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), __file__, str(call)]
    with subprocess.Popen(command, env=_environment()) as launcher:
        try:
            yield launcher
        finally:
            launcher.terminate()


def _environment():
    folders = [TESTS, TESTS / "distributed", TESTS / "benchmark", TESTS.parent, os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(map(str, folders)).rstrip(os.pathsep)
    own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    # CUDA cannot be used in the fork of a process that has asked the runtime for devices; NVML may be asked.
    return os.environ | own | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _fork_all(call, count):
    """One process loads the libraries, and its forks are the ranks."""
    module, name, arguments, join = pickle.loads(Path(call).read_bytes())
    module = importlib.import_module(module)
    function, port = getattr(module, name), free_port()
    torch.set_num_threads(1)
    getattr(module, "before", lambda: None)()
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(f"{call}.said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            own = {
                "RANK": rank,
                "WORLD_SIZE": count,
                "LOCAL_RANK": rank,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            os.environ |= {key: str(value) for key, value in own.items()}
            code = 1
            try:
                code = _run(call, function, arguments, join=join)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    Path(f"{call}.codes").write_bytes(pickle.dumps(codes))


def _run(call, function, arguments, *, join):
    """This rank's part; the exit code."""
    torch.set_num_threads(1)
    result = Path(f"{call}.{os.environ['RANK']}")
    try:
        with joined(wanted=True) if join else nullcontext() as ranks:
            result.write_bytes(pickle.dumps(function(*([ranks] if join else []), *arguments)))
    except HessError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    import torch

    from hesscli.distributed import joined
    from hesscli.errors import HessError

    if len(sys.argv) == 3:
        _fork_all(sys.argv[1], int(sys.argv[2]))
    else:  # a process that torchrun has started
        module, name, arguments, _ = pickle.loads(Path(sys.argv[1]).read_bytes())
        sys.exit(_run(sys.argv[1], getattr(importlib.import_module(module), name), arguments, join=True))
