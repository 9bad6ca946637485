"""Several processes by one command: launch, which is torchrun with the exit codes of hess."""

import logging
import os
import signal
from typing import Any, NoReturn

import typer

from hesscli.errors import UsageError

_LAUNCH = (
    "Start a verb in several processes: torchrun's own flags, then the verb and its words.\n\n"
    "It is torchrun -m hesscli, but for the exit code, which is that of the run, and for torchrun's account of a "
    "failure, which is left out. torchrun --help lists the flags; processes share the cores where OMP_NUM_THREADS is "
    "not set."
)


def register(app: typer.Typer) -> None:
    """Put the verb on the app."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
    usage = "[TORCHRUN'S FLAGS] VERB [WORDS]"
    app.command("launch", help=_LAUNCH, context_settings=settings, options_metavar=usage)(_launch)


def _launch(context: typer.Context) -> None:
    if os.environ.get("HESS_DEBUG") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        logging.disable(logging.ERROR)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError
    from torch.distributed.run import run

    given = _given(context.args)
    before = signal.getsignal(signal.SIGTERM)
    try:
        run(given)
    except ChildFailedError as error:
        raise typer.Exit(_code(error)) from error
    except SignalException as error:  # which the processes have had too
        raise typer.Exit(128 + error.sigval) from error
    except RendezvousTimeoutError as error:
        what = f"not all of {given.nnodes} machines have come to {given.rdzv_endpoint}"
        remedy = "start the same on each; --rdzv-conf join_timeout=SECONDS waits longer"
        raise UsageError("ranks", what, remedy) from error
    except ValueError as error:
        raise UsageError("launch", " ".join(str(error).split()), "torchrun --help lists what it takes") from error
    except RendezvousError as error:
        if signal.getsignal(signal.SIGTERM) is not before:  # torchrun had started processes, which said why they ended
            raise typer.Exit(1) from error
        what = f"nobody answers at {given.rdzv_endpoint}"
        raise UsageError("ranks", what, "--rdzv-endpoint is to be the first machine's, the same on each") from error


def _given(words: list[str]) -> Any:
    """What torchrun makes of these words, with hess in the place of a script. Raises UsageError without a verb."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.prog = "hess launch"
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_args(words)
    verb = [given.training_script, *given.training_script_args]
    if given.module and verb[0] == "hesscli":  # as it was typed after torchrun
        verb = verb[1:]
    given.module, given.training_script, given.training_script_args = True, "hesscli", verb
    if "OMP_NUM_THREADS" not in os.environ and given.nproc_per_node.isdigit():
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(given.nproc_per_node)))
    return given


def _refuse(message: str) -> NoReturn:
    missing = "training_script" in message
    what = "is missing after torchrun's flags" if missing else message
    raise UsageError("VERB" if missing else "launch", what, "such as hess launch --nproc-per-node 2 topk MODEL")


def _code(error: Any) -> int:
    """Of the process that failed first; one that could not say why is told of."""
    rank, first = error.get_first_failure()
    if first.exitcode > 0 and first.local_rank == 0:
        code: int = first.exitcode
        return code
    from hesscli.cli.output import complain

    if first.exitcode > 0:
        complain(f"error: ranks: rank {rank} ended first, with exit code {first.exitcode}; HESS_DEBUG=1 shows why")
        return int(first.exitcode)
    number = -first.exitcode
    complain(f"error: ranks: rank {rank} was ended by {signal.Signals(number).name}; the same command goes on")
    return 128 + number
