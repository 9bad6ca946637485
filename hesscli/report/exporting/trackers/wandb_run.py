"""Weights & Biases: a run of the same id; where and as whom is said by its own variables (WANDB_PROJECT, ...)."""

import os
from pathlib import Path

from hesscli.report.exporting.trackers.content import name, scalars, settings, training_step
from hesscli.report.schema import Report


def send(report: Report, folder: Path) -> str:
    """Log the figures, the drawings and the report, and return the run's address, or its folder when offline."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "hess"),
        id=report.run_id,
        name=name(report),
        group=report.model.id,
        job_type=report.command,
        config={**settings(report), "step": training_step(report)},
        resume="allow",
        settings=wandb.Settings(silent=True),
    )
    try:
        run.log(scalars(report))
        run.log({path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))})
        artifact = wandb.Artifact(f"hess-{report.run_id}", type="hess-report")
        artifact.add_file(str(folder / "report.json"))
        run.log_artifact(artifact)
        where = run.dir if run.offline else run.url
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)
    return str(where)
