"""Reports with the figures that a test wants, for what works from JSON alone."""

from hesscli.report.document import write_report
from hesscli.report.schema import (
    Block,
    Cost,
    Data,
    Errors,
    Loss,
    Metric,
    Model,
    Operator,
    Preflight,
    Report,
    Samples,
)


def figure(value, *, below=None, above=None, half=None, stderr=None, count=16, **errors):
    """A figure with an interval; sampled where it has a standard error, else bounded."""
    below, above = (below, above) if half is None else (half, half)
    ci = None if below is None else (value - below, value + above)
    return Metric(
        value=value,
        stderr=stderr,
        ci=ci,
        errors=Errors(**errors),
        n={"probes": count},
        reason=None if ci else "one draw has no error bar",
    )


def sampled(value, stderr, *, count=16, quantile=2.13145, **errors):
    """A figure whose interval is Student's; the quantile is that of 15 degrees of freedom."""
    half = quantile * stderr + errors.get("precision", 0.0)
    return figure(value, half=half, stderr=stderr, count=count, probe=stderr, **errors)


def written(metrics, *, command="trace", seed=0, blocks=None, samples=None, estimator=None, **changes):
    """A report of these figures."""
    content = {
        "status": "ok",
        "run_id": f"{seed:08x}",
        "created": "2026-01-02T03:04:05Z",
        "seconds": 1.0,
        "model": Model(
            id="org/model",
            revision="main",
            class_name="Qwen3ForCausalLM",
            num_parameters=100,
            num_selected=100,
            dtype="float32",
            attention="eager",
            tied=True,
        ),
        "data": Data(
            id="rows", sequences=4, tokens=64, loss_terms=60, max_length=16, packed=True, fingerprint="sha256:00"
        ),
        "loss": Loss(value=1.0, stderr=0.1),
        "operator": Operator(
            kind="hessian",
            product="layered",
            why="chosen",
            params=["*"],
            placement="single",
            batch_size=4,
            preflight=Preflight(),
        ),
        "cost": Cost(matvecs=32),
        "environment": {"hess": "0.1.0"},
    }
    found = Report.model_validate(
        {
            **content,
            "command": command,
            "estimator": {"seed": seed, "probes": 16, "steps": 16, **(estimator or {})},
            "metrics": metrics,
            "blocks": [Block(name=name, num_parameters=1, metrics=of) for name, of in (blocks or {}).items()],
            "samples": {name: Samples(**draws) for name, draws in (samples or {}).items()},
        },
        by_name=True,
    )
    for path, value in changes.items():
        part, _, key = path.partition("__")
        setattr(getattr(found, part) if key else found, key or part, value)
    return found


def on_disk(path, *arguments, **changes):
    """The path of such a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_report(written(*arguments, **changes), path)
    return path
