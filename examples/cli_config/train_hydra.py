"""The network of ``train.py`` in a Trainer that Hydra builds as ``hydra.yaml`` says.

Run in this folder: ``python train_hydra.py trainer.max_epochs=2``
"""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from train import Digits


@hydra.main(version_base="1.3", config_path=".", config_name="hydra")
def main(config: DictConfig) -> None:
    """Train, and print the gradient norm of the last step."""
    trainer = instantiate(config.trainer)
    trainer.fit(Digits())
    print("gradient norm:", trainer.callback_metrics["gradexplode/grad_norm"].item())


if __name__ == "__main__":
    main()
