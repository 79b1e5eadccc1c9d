"""The role and the settings of modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lightning_gradexplode.records import ModuleFacts
from tests.measure.modules import CharRNN, ElmanCell, facts_of


class Swish(nn.Module):
    """A user's own activation."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.sigmoid(self.beta * inputs)


class SwiGLU(nn.Module):
    """A feed-forward block with the name of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)


class RMSNorm2d(nn.Module):
    """A user's own normalization."""

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(4))


class ContrastiveLoss(nn.Module):
    """A user's own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 0.07
        self.api_key = "secret"


class Autoencoder(nn.Module):
    """A net with square layers, none of which is recurrent, and one whose name begins like one."""

    def __init__(self) -> None:
        super().__init__()
        self.rec = nn.Linear(4, 4)
        self.hidden = nn.Linear(4, 4)


def only(module: nn.Module) -> ModuleFacts:
    """Return the facts of the outermost module."""
    return facts_of(module).modules[0]


@pytest.mark.parametrize(
    ("build", "role"),
    [
        (nn.ReLU, "activation"),
        (lambda: nn.Softmax(dim=1), "activation"),
        (lambda: nn.LSTM(2, 3), "recurrent"),
        (lambda: nn.GRUCell(2, 3), "recurrent"),
        (lambda: nn.BatchNorm2d(3), "normalization"),
        (lambda: nn.LayerNorm(3), "normalization"),
        (lambda: nn.InstanceNorm1d(3), "normalization"),
        (lambda: nn.Conv2d(1, 2, 3), "convolution"),
        (lambda: nn.ConvTranspose1d(1, 2, 3), "convolution"),
        (lambda: nn.LazyConv2d(2, 3), "convolution"),
        (lambda: nn.Linear(2, 2), "linear"),
        (lambda: nn.LazyLinear(2), "linear"),
        (nn.Identity, "other"),
        (nn.Sequential, "other"),
        (lambda: nn.MultiheadAttention(4, 2), "attention"),
        (lambda: nn.Embedding(5, 2), "embedding"),
        (nn.Dropout, "dropout"),
        (nn.CrossEntropyLoss, "loss"),
        (nn.CTCLoss, "loss"),
        (lambda: parametrizations.weight_norm(nn.Linear(2, 2)), "linear"),
        (lambda: torch.jit.script(nn.Linear(2, 2)), "other"),
        (Swish, "activation"),
        (SwiGLU, "other"),
        (RMSNorm2d, "normalization"),
        (ContrastiveLoss, "loss"),
        (ElmanCell, "recurrent"),
        (CharRNN, "recurrent"),
        (Autoencoder, "other"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore:Lazy modules:UserWarning")
def test_every_module_has_the_role_of_its_class(build: Callable[[], nn.Module], role: str) -> None:
    """Torch's modules have the role of what they are; the user's own, that of their name and parameters."""
    assert only(build()).role == role


def test_a_guessed_role_is_marked_as_one() -> None:
    """Only the roles of the user's own classes are guesses, not of what they derive from torch's."""

    class Wide(nn.Linear):
        """A linear layer of the user's own."""

    assert only(Swish()).settings["guessed"] is True
    assert "guessed" not in only(Wide(2, 2)).settings
    assert only(Wide(2, 2)).role == "linear"


def test_settings_are_plain_attributes() -> None:
    """Numbers are there; strings only of torch's classes, as those of the user's own could be private."""
    assert (
        only(nn.LSTM(2, 3, num_layers=2, batch_first=True)).settings.items()
        >= {
            "num_layers": 2,
            "hidden_size": 3,
            "batch_first": True,
            "bidirectional": False,
        }.items()
    )
    assert only(nn.RNN(2, 3, nonlinearity="relu")).settings["nonlinearity"] == "relu"
    assert only(nn.BatchNorm1d(3, eps=1e-3)).settings.items() >= {"eps": 1e-3, "affine": True}.items()
    assert only(nn.Dropout(0.3)).settings["p"] == 0.3
    assert only(nn.Linear(2, 3, bias=False)).settings["bias"] is False
    assert only(nn.Conv2d(1, 1, 3)).settings["kernel_size"] == "3x3"
    assert only(nn.CrossEntropyLoss(ignore_index=-1)).settings["ignore_index"] == -1
    assert only(ContrastiveLoss()).settings == {"temperature": 0.07, "guessed": True}
