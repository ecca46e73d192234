"""TensorBoard events as TensorBoard itself reads them."""

import warnings
from pathlib import Path


def read_events(folder: Path):
    """What TensorBoard's own reader finds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's vendored packages, at import
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
        return reader.Reload()
