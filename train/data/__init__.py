"""Training pictures: from folders, tar files and streamed shards to batches of crops."""

from .config import Batch, DataConfig, DataError
from .loader import TrainingData

__all__ = ["Batch", "DataConfig", "DataError", "TrainingData"]
