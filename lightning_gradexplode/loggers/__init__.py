"""Output of records and findings: TensorBoard, W&B, any other Lightning logger, and the console."""

from lightning_gradexplode.loggers.base import LoggerAdapter
from lightning_gradexplode.loggers.collection import LoggerCollection
from lightning_gradexplode.loggers.registry import register_logger_adapter
from lightning_gradexplode.loggers.wandb_rules import alert_rules

__all__ = ["LoggerAdapter", "LoggerCollection", "alert_rules", "register_logger_adapter"]
