"""What ranks do in attempts that end badly: each attempt is a fork of processes that have loaded the libraries.

An attempt is a function of this module and its arguments. On each rank it comes back as its exit code, and what it
returned or said.
"""

import errno
import os
import pickle
import signal
import sys
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from spawned_loading import write_rows
from tiny import tiny_model

from hesscli.distributed import failure, ranks
from hesscli.errors import HessError
from hesscli.recipe.cells import expand
from hesscli.recipe.document import resolve
from hesscli.report.sweep import read_manifest
from hesscli.run.session import run
from hesscli.run.storage import product_log
from hesscli.run.storage.product_log import ProductLog
from hesscli.run.sweep import loop
from hesscli.run.sweep.plan import plan_sweep
from hesscli.run.together import together

SMALL = {
    "operator.params": ["*layers.0*norm*"],
    "output.plots": "none",
    "probe": "topk",
    "estimator.k": 1,
    "estimator.which": "largest",
    "estimator.steps": 6,
}


def before():
    """A run in the process whose forks the ranks are: what it loads and prepares, they need not."""
    with tempfile.TemporaryDirectory() as folder:
        make_place(Path(folder))
        run(recipe_in(f"{folder}/out"), force=False, resume=True, on_event=lambda _event: None)


def make_place(place):
    """Two checkpoints, and two rows, for runs whose folders lie beside them."""
    tiny_model("qwen3").save_pretrained(place / "tiny")
    tiny_model("llama").save_pretrained(place / "other")
    write_rows(place / "rows.jsonl")


def values_in(folder):
    """What a recipe says for a run in a folder."""
    place = Path(folder).parent
    return SMALL | {"model.id": str(place / "tiny"), "data.id": str(place / "rows.jsonl"), "output.dir": str(folder)}


def recipe_in(folder):
    """The recipe of a run in a folder."""
    return resolve([("test", values_in(folder))])[0]


def attempts(ports, functions):
    """Make the attempts one after the other, each on a port of its own and by the first so many ranks."""
    found = []
    for port, (count, name, arguments) in zip(ports, functions, strict=True):
        if int(os.environ["RANK"]) >= count:
            found.append(None)
            continue
        with tempfile.NamedTemporaryFile() as file:
            child = os.fork()
            if child == 0:
                os.environ |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
                failure._GRACE = 1.0  # what nobody will say is not waited for so long here
                _attempt(name, arguments, Path(file.name))
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = file.read()
            found.append((code, pickle.loads(said) if said else None))
    return found


def _attempt(name, arguments, file):
    code = 1
    try:
        file.write_bytes(pickle.dumps(globals()[name](*arguments)))
        code = 0
    except HessError as error:
        file.write_bytes(pickle.dumps(str(error)))
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def measured(folder, harm=None):
    """A run, resumed; returns its notes. `harm`: by rank, after how many requests it comes to harm, and how."""
    notes = []
    with together(recipe_in(folder), force=False, resume=True) as share, harmed(*(harm or {}).get(ranks().rank, ())):
        run(share.recipe, force=False, resume=True, on_event=lambda event: notes.append(getattr(event, "text", "")))
    return notes


def swept(folder, harm=None, retry_failed=False, shard=(1, 1)):
    """A sweep whose second cell cannot be had; the others' runs come to harm. Cells, or what failed on other ranks."""
    place = Path(folder).parent
    values = values_in(folder) | {
        "matrix.model.id": [str(place / n) for n in ("tiny", "none", "other")],
        "name": "small",
    }
    plan, failures = plan_sweep(expand([("test", values)])), []
    given = {"shard": shard, "retry_failed": retry_failed, "gating": None}
    with harmed(*(harm or {}).get(int(os.environ["RANK"]), ())):
        ending = loop.sweep(plan, **given, on_event=lambda _event: None, on_failure=failures.append)
    if ending is None:
        return [str(error) for error in failures]
    assert ending.manifest == read_manifest(plan.folder / "manifest.json")
    return [(cell.status, cell.error, cell.exit_code) for cell in ending.manifest.cells]


@contextmanager
def harmed(count=0, how=None):
    """At a request: killed `before` a file is written, when `half` of it is, or `after`; `too-large`; a `full` disk."""
    add, write, left = ProductLog.add, product_log.write_tensors, [count]

    def kill(now):
        if left[0] == 0 and how == now:
            os.kill(os.getpid(), signal.SIGKILL)

    def written(path, *given):
        write(path, *given)
        if left[0] == 0 and how == "half":
            path.write_bytes(path.read_bytes()[:-200])
        kill("half")

    def added(self, *given):
        left[0] -= 1
        kill("before")
        if left[0] == 0 and how == "too-large":
            raise MemoryError("no room")
        if left[0] == 0 and how == "full":
            raise OSError(errno.ENOSPC, "no space left")
        add(self, *given)
        kill("after")

    with mock.patch.object(product_log, "write_tensors", written), mock.patch.object(ProductLog, "add", added):
        yield
