import logging

import pytest


@pytest.fixture
def spoken():
    """What third parties log while a test runs, as text."""
    records = []

    class Listen(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    loggers = [logging.getLogger(name) for name in ("transformers", "datasets", "huggingface_hub")]
    listener = Listen()
    for logger in loggers:
        logger.addHandler(listener)
    yield records
    for logger in loggers:
        logger.removeHandler(listener)
