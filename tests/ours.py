"""The repository's own files: a scratch file beside them is none of the suite's business."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def ours(*patterns: str) -> list[Path]:
    """Those that git tracks; without git, or in a copy that git knows nothing of, those that our pages name."""
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    try:
        told = subprocess.run(["git", "ls-files", "-z", "."], cwd=ROOT, capture_output=True, check=True).stdout
        tracked = {ROOT / name for name in told.decode(errors="surrogateescape").split("\0")}
        if ROOT / "README.md" in tracked:
            return [path for path in found if path in tracked]
    except (OSError, subprocess.SubprocessError):
        pass
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "README.md"]
    said = "".join(page.read_text(encoding="utf-8") for page in pages)
    return [path for path in found if path.name in said]
