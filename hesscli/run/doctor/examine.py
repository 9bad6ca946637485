"""The whole examination, in order: machine, derivatives, products."""

import time

import torch

from hesscli.errors import HessError
from hesscli.events import Advanced, Finished, OnEvent, Started, ignore
from hesscli.run.doctor.derivatives import derivatives
from hesscli.run.doctor.document import Device, Examination, SelfTest, Tried, Trouble
from hesscli.run.doctor.machine import devices, extras, settings, troubles, versions
from hesscli.run.doctor.selftest import against_dense, noise_of, subject_on
from hesscli.run.environment import exact_arithmetic, precisions
from hesscli.run.faults import as_hess_error


def examine(on_event: OnEvent) -> Examination:
    """Everything, in seconds. What fails is in it as a trouble with a remedy, and the verdict is `failed`.

    Of several GPUs of one name the first alone is tried.
    """
    start, before = time.perf_counter(), precisions()
    exact_arithmetic()
    found, optional = devices(), extras()
    tried: list[Tried] = []
    tests: list[SelfTest] = []
    places = _one_of_each(found)
    on_event(Started("doctor", 3 * len(places), unit="checks"))
    for number, device in enumerate(places):
        tried += derivatives(device)
        on_event(Advanced("doctor", 3 * number + 1, f"derivatives on {device}"))
        try:
            with as_hess_error():
                subject = subject_on(device, ignore)
                tests += against_dense(subject, device)
                on_event(Advanced("doctor", 3 * number + 2, f"products on {device}"))
                tests += noise_of(subject, device)
        except HessError as error:
            tests.append(
                SelfTest(name="self-test", device=str(device), error=None, limit=0.0, passed=False, reason=str(error))
            )
        on_event(Advanced("doctor", 3 * number + 3, f"noise on {device}"))
    on_event(Finished("doctor"))
    wrong = [*troubles(found, optional), *_of_derivatives(tried), *_of_tests(tests)]
    return Examination(
        verdict="failed" if any(trouble.failed for trouble in wrong) else "ok",
        versions=versions(),
        extras=optional,
        settings=settings(before),
        devices=found,
        derivatives=tried,
        self_tests=tests,
        troubles=sorted(wrong, key=lambda trouble: not trouble.failed),
        seconds=time.perf_counter() - start,
    )


def _one_of_each(found: list[Device]) -> list[torch.device]:
    first = {device.hardware: device.name for device in reversed(found)}
    return [torch.device(name) for name in reversed(first.values())]


def _of_derivatives(tried: list[Tried]) -> list[Trouble]:
    out = []
    for one in tried:
        if not one.relied_on:  # hess takes another kernel while it differentiates
            if "wrong" in (one.double_backward, one.forward_mode):
                text = f"second derivatives of {one.operation} are wrong on {one.device}, without an error"
                out.append(Trouble(failed=False, text=text, remedy="hess does not use them; other programs may"))
        elif one.double_backward != "yes":
            word = "are wrong" if one.double_backward == "wrong" else "are missing"
            text = f"second derivatives of {one.operation} {word} on {one.device}"
            out.append(Trouble(failed=True, text=text, remedy="use --product finite-difference, or another torch"))
        elif one.forward_mode != "yes":
            text = f"{one.operation} has no forward mode on {one.device}: models with it are not taken layer by layer"
            out.append(Trouble(failed=False, text=text, remedy="use --product double-backward"))
    return out


def _of_tests(tests: list[SelfTest]) -> list[Trouble]:
    out = []
    for test in tests:
        if test.passed:
            continue
        what = test.reason or f"{test.error:.2g}, above {test.limit:.0e}"
        remedy = "reinstall torch as pyproject.toml has it, and report it if it stays"
        out.append(Trouble(failed=True, text=f"{test.name} on {test.device}: {what}", remedy=remedy))
    return out
