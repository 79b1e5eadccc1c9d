"""Records and findings to people: TensorBoard, W&B, any other Lightning logger, and the console."""

from lightning_gradexplode.publish.base import Publisher
from lightning_gradexplode.publish.board import Board
from lightning_gradexplode.publish.registry import register_publisher
from lightning_gradexplode.publish.wandb_rules import alert_rules

__all__ = ["Board", "Publisher", "alert_rules", "register_publisher"]
