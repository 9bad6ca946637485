"""TensorBoard: an event file in the run's folder, so that `tensorboard --logdir outputs` shows every run."""

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from hesscli.report.exporting.trackers.content import scalars, training_step
from hesscli.report.schema import Report

# The library calls its own files after the host: the run's has one name, which also makes it replace itself.
_FILE = "events.out.tfevents.hess"


def send(report: Report, folder: Path) -> str:
    """Write the figures as scalars at the step of the training, and return the folder. They are kept as float32."""
    from tensorboard.summary import Writer

    step, measured = training_step(report), datetime.fromisoformat(report.created.replace("Z", "+00:00")).timestamp()
    with TemporaryDirectory(dir=folder, prefix=".") as part:
        writer = Writer(part)
        for tag, value in scalars(report).items():
            writer.add_scalar(tag, value, step, wall_time=measured)
        writer.close()
        (written,) = Path(part).iterdir()
        written.replace(folder / _FILE)
    return str(folder)
