"""MLflow: a run with the report's id as a tag; where is said by its own variables (MLFLOW_TRACKING_URI)."""

import os
from pathlib import Path

from hesscli.report.exporting.trackers.content import name, scalars, settings, training_step
from hesscli.report.schema import Report

_TAG = "hess.run_id"


def send(report: Report, folder: Path) -> str:
    """Log the figures, the drawings and the report, and return the run's id."""
    import mlflow

    if not (os.environ.get("MLFLOW_EXPERIMENT_NAME") or os.environ.get("MLFLOW_EXPERIMENT_ID")):
        mlflow.set_experiment("hess")
    # A list, for the small mlflow has no pandas.
    earlier = mlflow.search_runs(
        filter_string=f"tags.`{_TAG}` = '{report.run_id}'", output_format="list", max_results=1
    )
    known = {"run_id": earlier[0].info.run_id} if earlier else {"run_name": name(report)}
    with mlflow.start_run(**known) as run:
        mlflow.set_tags({_TAG: report.run_id, "hess.status": report.status})
        if not earlier:  # parameters cannot be changed, and those of one id never do
            mlflow.log_params(settings(report))
        mlflow.log_metrics(scalars(report), step=training_step(report))
        for path in [folder / "report.json", *sorted(folder.glob("*.png"))]:
            mlflow.log_artifact(str(path))
        # Not the store's address, which may hold a password.
        return f"run {run.info.run_id}"
