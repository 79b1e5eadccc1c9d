"""Records and findings to people: TensorBoard, W&B, any other Lightning logger, and the console."""

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.board import Board

__all__ = ["Board", "Publisher"]
