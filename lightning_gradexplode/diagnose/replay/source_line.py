"""The line of the user's own code that called an operation."""

from __future__ import annotations

import linecache
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

_LIBRARIES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "lightning_utilities",
    "lightning_gradexplode",
    "einops",
    "numpy",
)
"""Packages whose frames are passed over: what is reported is the line that called them."""

_ENGINE = "_engine_run_backward"
"""The function of torch that runs the backward pass: frames outside of it called ``backward``, not the operation."""


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A place in Python code.

    Args:
        code: The code object.
        line: The line number.
        instruction: Offset of the instruction in the code object.
    """

    code: CodeType
    line: int
    instruction: int

    @property
    def function(self) -> str:
        """Name of the function."""
        return self.code.co_name

    @property
    def file(self) -> str:
        """Name of the file, relative to the working directory where it is inside, else its last part."""
        path = Path(self.code.co_filename)
        try:
            return path.resolve().relative_to(Path.cwd()).as_posix()
        except (ValueError, OSError):
            return path.name

    @property
    def text(self) -> str | None:
        """The line itself."""
        return linecache.getline(self.code.co_filename, self.line).strip() or None

    @property
    def expression(self) -> str | None:
        """The part of the line, or of the lines, that is the call; None before Python 3.11."""
        if sys.version_info < (3, 11):
            return None
        position = next(islice(self.code.co_positions(), self.instruction // 2, None), None)
        if position is None or None in position:
            return None
        first, last, begin, end = (int(one or 0) for one in position)
        lines = [linecache.getline(self.code.co_filename, line).rstrip("\n") for line in range(first, last + 1)]
        if not all(lines):
            return None
        # Columns are counted in bytes.
        lines[-1] = lines[-1].encode()[:end].decode(errors="ignore")
        lines[0] = lines[0].encode()[begin:].decode(errors="ignore")
        return " ".join(line.strip() for line in lines) or None


def calling_line() -> SourceLine | None:
    """Return the innermost line outside of torch, Lightning and this package that is running now.

    Returns:
        None where there is none, as in a backward pass, which has no line of its own.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == _ENGINE:
            return None
        if not _is_library(code.co_filename):
            return SourceLine(code, frame.f_lineno, frame.f_lasti)
        frame = frame.f_back
    return None


@lru_cache(maxsize=4096)
def _is_library(filename: str) -> bool:
    """Return whether a file belongs to the standard library, or to one of the packages that are passed over."""
    if filename.startswith(("<frozen", "<eval_with_key", "<__array_function__")):
        return True
    path = Path(filename)
    if any((root / name) in path.parents for root in _roots() for name in _LIBRARIES):
        return True
    standard = Path(sysconfig.get_path("stdlib"))
    return standard in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)


@lru_cache(maxsize=1)
def _roots() -> tuple[Path, ...]:
    """Return the folders in which packages are installed, and the one of this package."""
    torch_root = Path(sys.modules["torch"].__file__ or "").parent.parent
    own = Path(__file__).parents[3]
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return (torch_root, *installed, own)
