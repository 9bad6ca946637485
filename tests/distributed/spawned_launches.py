"""hess as a shell sees it, alone and under `hess launch`: forks of one process that has loaded the libraries.

The launcher is torchrun's own; its processes are forks too, in place of new interpreters. One of them may say that it
is at a certain product and wait there, so that what happens to the run happens in the middle of it.
"""

import importlib
import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch
import torch.distributed.run as torchrun
from spawned_attempts import before
from torch.distributed.launcher import api

from hesscli.cli.app import main
from hesscli.errors import UsageError
from hesscli.run.storage.product_log import ProductLog

for name in ("run.session", "run.sweep.loop", "cli.measuring"):  # what is imported when it is needed
    importlib.import_module(f"hesscli.{name}")

AWAY = 60.0  # seconds that a process waits for what is to happen to it


def in_shell(place, words, *, processes=3, at=None, sent=None, more=(), machines=1):
    """(exit code, stdout, stderr, the processes that are left) of hess with these words in so many processes.

    `at`: (rank, count, how), who `waits`, has `faulty` data or `dies` at which of its products; `sent`: the signal that
    the launcher gets while it waits. `more`: what the last rank is asked for beside it. `machines`: on how many of them
    the processes believe to be.
    """
    files = [Path(place) / f".{name}" for name in ("stdout", "stderr", "reached", "numbers")]
    for file in files:
        file.unlink(missing_ok=True)
    shell = os.fork()
    if shell == 0:
        _run(words, processes, [files, at, more, machines])
    if sent is not None:
        until = time.monotonic() + AWAY
        while not files[2].exists() and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(shell, sent)
    code = os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1])
    numbers = [int(line) for line in files[3].read_text().split()] if files[3].exists() else []
    return code, files[0].read_text(), files[1].read_text(), [number for number in numbers if _is_there(number)]


def _is_there(number):
    with suppress(ProcessLookupError):
        os.kill(number, 0)
        return True
    return False


def _run(words, processes, rest):
    class Forking(api.elastic_launch):
        def __call__(self, *given):
            self._config.start_method = "fork"
            self._entrypoint = _rank
            return super().__call__(list(given)[list(given).index("hesscli") + 1 :], *rest)

    code = 1
    try:
        for stream, file in zip((1, 2), rest[0][:2], strict=True):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        start = ["launch", "--nproc-per-node", str(processes)] if processes > 1 else []
        with mock.patch.object(torchrun, "elastic_launch", Forking):
            main([*start, *words])
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank(words, files, at, more, machines):
    """What each process does: the command, with a wait at a product of one of them."""
    with files[3].open("a") as file:
        file.write(f"{os.getpid()}\n")
    add, left = ProductLog.add, [at[1] if at and str(at[0]) == os.environ["RANK"] else 0]

    def added(self, *given):
        add(self, *given)
        left[0] -= 1
        if left[0] == 0 and at[2] == "faulty":
            raise UsageError("data.column", "row 7 is broken", "mend it")
        if left[0] == 0 and at[2] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if left[0] == 0:
            files[2].touch()
            time.sleep(AWAY)

    if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
        words = [*words, *more]
    os.environ["GROUP_WORLD_SIZE"] = str(machines)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a new interpreter has them, not as the launcher
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with mock.patch.object(ProductLog, "add", added):
        main(words)


if __name__ == "__main__":
    place, calls = pickle.loads(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(1)
    before()
    found = {name: in_shell(place, words, **given) for name, (words, given) in calls.items()}
    Path(f"{sys.argv[1]}.found").write_bytes(pickle.dumps(found))
