"""What products and probes cost, beside other libraries, as Markdown tables.

Usage: python tests/benchmark [--what products|profile|probes|scaling|offloaded|startup|all] [--model demo|8m|all]
       [--repeats N] [--threads N] [--cpu-time]
       python tests/benchmark --what gpu [--device cuda|cpu] [--parts products,largest,elsewhere] [--repeats N]
       [--seconds S]
"""

import argparse
import os
import platform
import sys
import time

import blockdiag_cost
import breakdown
import eigenpairs
import lanczos_cost
import offloaded
import scaling
import startup
import torch
from gpu.parts import PARTS, SECONDS, run_parts
from measuring import cells, measure
from subjects import SUBJECTS
from tables import write_table

from hesscli.run.environment import environment, exact_arithmetic, keep_freed_pages

_COLUMNS = ["model", "product", "seconds", "gradients", "min..max", "relative difference"]
_WHAT = ["products", "profile", "probes", "scaling", "offloaded", "startup", "gpu", "all"]


def _arguments():
    parser = argparse.ArgumentParser(prog="tests/benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=_WHAT, default="all")
    parser.add_argument("--model", choices=[*SUBJECTS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=7, help="turns of the products; the median is shown")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice if left out")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    parser.add_argument("--device", default="cuda", help="of --what gpu; cpu runs it tiny, to see that it runs")
    parser.add_argument("--parts", default=",".join(PARTS), help="of --what gpu, joined by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of --what gpu: nothing is begun after them")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"--parts {','.join(sorted(unknown))} is none of {','.join(PARTS)}")
    if arguments.what == "gpu" and arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a torch that sees a GPU; --device cpu runs the same, tiny")
    for name in ("repeats", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def _say(text):
    sys.stderr.write(f"{text}\n")


def _products(subjects, repeats, clock):
    """Whether all products are of one matrix, after their table."""
    tables = [(subject, measure(subject, repeats, clock=clock, say=_say)) for subject in subjects]
    shown = [[subject.name, row.name, *cells(row, rows[0])] for subject, rows in tables for row in rows]
    write_table(_COLUMNS, shown, [f"the median of {repeats} turns"])
    # A product of another quantity is a fault; a peer that is absent or cannot take the model is not.
    reasons = [row.reason for _, rows in tables for row in rows]
    return not any(reason is not None and reason.startswith("differs") for reason in reasons)


def _probes(subjects, clock):
    """Eigenpairs on the trained checkpoint; what goes by the size of a model, on the larger one."""
    for subject in subjects:
        if subject.name == "demo":
            rows = eigenpairs.eigenpair_rows(subject, clock=clock, say=_say)
            write_table(eigenpairs.COLUMNS, rows, eigenpairs.LEGEND)
        else:
            for part, measured in (
                (lanczos_cost, lanczos_cost.lanczos_rows),
                (blockdiag_cost, blockdiag_cost.blockdiag_rows),
            ):
                write_table(part.COLUMNS, measured(subject, clock=clock, say=_say), part.LEGEND)


def main():
    arguments = _arguments()
    keep_freed_pages()  # as every run of hess does; the peers have the benefit too
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.what == "gpu":
        exact_arithmetic()
        parts = arguments.parts.split(",")
        run_parts(arguments.device, parts, repeats=arguments.repeats, seconds=arguments.seconds, say=_say)
        sys.stdout.write(f"- torch {torch.__version__}, {environment(torch.device(arguments.device))['device']}\n")
        return False
    chosen = list(SUBJECTS) if arguments.model == "all" else [arguments.model]
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    subjects = [SUBJECTS[name]() for name in chosen]
    good = True
    if arguments.what in ("startup", "all"):
        legend = [line.format(repeats=arguments.repeats) for line in startup.LEGEND]
        write_table(startup.COLUMNS, startup.startup_rows(arguments.repeats, say=_say), legend)
    if arguments.what in ("scaling", "all"):
        rows = [row for name in chosen for row in scaling.scaling_rows(name, arguments.repeats, say=_say)]
        write_table(scaling.COLUMNS, rows, scaling.LEGEND)
    if arguments.what in ("offloaded", "all"):
        write_table(offloaded.COLUMNS, offloaded.offloaded_rows(arguments.repeats, say=_say), offloaded.LEGEND)
    if arguments.what in ("products", "all"):
        good = _products(subjects, arguments.repeats, clock)
    if arguments.what in ("profile", "all"):
        rows = [row for subject in subjects for row in breakdown.breakdown_rows(subject, arguments.repeats, say=_say)]
        legend = [line.format(repeats=arguments.repeats) for line in breakdown.LEGEND]
        write_table(breakdown.COLUMNS, rows, legend)
    if arguments.what in ("probes", "all"):
        _probes(subjects, clock)
    for subject in subjects:
        sys.stdout.write(f"- {subject}\n")
    sys.stdout.write(
        f"- torch {torch.__version__}, threads {torch.get_num_threads()}, cores {os.cpu_count()} "
        f"({platform.machine()}), float32, eager attention, "
        f"{'processor' if arguments.cpu_time else 'wall-clock'} seconds\n"
    )
    return not good


if __name__ == "__main__":
    sys.exit(main())
