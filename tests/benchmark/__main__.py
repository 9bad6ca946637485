"""Seconds per Hessian-vector product over seconds per gradient, beside other libraries, as a Markdown table.

Usage: python tests/benchmark [--model demo|8m|all] [--repeats N] [--threads N] [--cpu-time]
"""

import argparse
import os
import platform
import sys
import time

import torch
from measuring import cells, measure
from subjects import SUBJECTS

from hesscli.run.environment import keep_freed_pages

_COLUMNS = ["model", "product", "seconds", "gradients", "min..max", "relative difference"]


def _arguments():
    parser = argparse.ArgumentParser(prog="tests/benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*SUBJECTS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=7, help="turns; the median is shown")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice if left out")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the processor, for a busy machine")
    arguments = parser.parse_args()
    for name in ("repeats", "threads"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def _say(text):
    sys.stderr.write(f"{text}\n")


def _write(values):
    sys.stdout.write(f"| {' | '.join(values)} |\n")


def main():
    arguments = _arguments()
    keep_freed_pages()  # as every run of hess does; the peers have the benefit too
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    chosen = list(SUBJECTS) if arguments.model == "all" else [arguments.model]
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    tables = []
    for name in chosen:
        subject = SUBJECTS[name]()
        tables.append((subject, measure(subject, arguments.repeats, clock=clock, say=_say)))
    _write(_COLUMNS)
    _write(["---"] * len(_COLUMNS))
    for subject, rows in tables:
        for row in rows:
            _write([subject.name, row.name, *cells(row, rows[0])])
    sys.stdout.write("\n")
    for subject, _ in tables:
        sys.stdout.write(f"- {subject}\n")
    sys.stdout.write(
        f"- torch {torch.__version__}, threads {torch.get_num_threads()}, cores {os.cpu_count()} "
        f"({platform.machine()}), float32, eager attention, {arguments.repeats} turns, "
        f"{'processor' if arguments.cpu_time else 'wall-clock'} seconds\n"
    )
    # A product of another quantity is a fault; a peer that is absent or cannot take the model is not.
    return any(row.reason is not None and row.reason.startswith("differs") for _, rows in tables for row in rows)


if __name__ == "__main__":
    sys.exit(main())
