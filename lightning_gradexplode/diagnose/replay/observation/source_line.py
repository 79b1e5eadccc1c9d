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

_STANDARD = "the standard library"
_LIBRARIES = (
    _STANDARD,
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

_NOTEBOOKS = ("ipykernel_", "<ipython-input-")
"""How the names begin by which notebooks file their cells."""

_INSTALLED = ("site-packages", "dist-packages")
"""Names of folders with installed packages."""

_CALLER = str(Path(__file__).parents[1] / "step.py")
"""The file that runs the step: frames outside of it belong to the run."""

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
        if any(part.startswith(_NOTEBOOKS) for part in path.parts):
            return "notebook cell"
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
    """Return the innermost line of the user's own code in a replayed step that is running now.

    Returns:
        A line outside of the standard library and of all installed packages. Where the step itself is in an installed
        package, the innermost line in that package. None where there is no such line, as in a backward pass.
    """
    others: list[SourceLine] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == _ENGINE or code.co_filename == _CALLER:
            break
        package = _package(code.co_filename)
        if package is None:
            return SourceLine(code, frame.f_lineno, frame.f_lasti)
        if package not in _LIBRARIES:
            others.append(SourceLine(code, frame.f_lineno, frame.f_lasti))
        frame = frame.f_back
    packages = [_package(one.code.co_filename) for one in others]
    return others[packages.index(packages[-1])] if others else None


@lru_cache(maxsize=4096)
def _package(filename: str) -> str | None:
    """Return the installed package that a file belongs to, None for the user's own code.

    Code without a file or a text, such as that of ``exec``, counts as a package of its own.
    """
    if filename.startswith(("<frozen", "<eval_with_key", "<__array_function__")):
        return _STANDARD
    if filename.startswith("<") and not linecache.getlines(filename):
        return filename
    path = Path(filename)
    for root in _roots():
        if root in path.parents and (root.name in _INSTALLED or path.relative_to(root).parts[0] in _LIBRARIES):
            return path.relative_to(root).parts[0]
    installed = next((at for at, part in enumerate(path.parts[:-1]) if part in _INSTALLED), None)
    if installed is not None:
        return path.parts[installed + 1]
    return _STANDARD if Path(sysconfig.get_path("stdlib")) in path.parents else None


@lru_cache(maxsize=1)
def _roots() -> tuple[Path, ...]:
    """Return the folders in which packages are installed, and the one of this package."""
    torch_root = Path(sys.modules["torch"].__file__ or "").parent.parent
    own = Path(__file__).parents[4]
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return (torch_root, *installed, own)
