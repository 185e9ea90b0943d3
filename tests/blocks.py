"""The fenced blocks of a page, and how they are run."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_FENCE = re.compile(
    r"^(?:<!-- (?P<mark>not run|file): (?P<said>[^>]+) -->\n)?"
    r"```(?P<language>\w+)\n(?P<text>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)
_BEGIN = """\
set -eEuo pipefail
trap 'echo "it failed: $BASH_COMMAND" >&2' ERR
curl() { command curl --fail-with-body "$@"; }
"""


@dataclass(frozen=True, slots=True)
class Block:
    """What stands between two fences. A comment before it, which no reader sees, may mark it:
    `<!-- not run: why -->`, or `<!-- file: NAME -->` for what later commands read."""

    language: str
    text: str
    not_run: str | None
    file: str | None


def blocks_of(page: Path) -> list[Block]:
    return [
        Block(
            found["language"],
            found["text"],
            found["said"] if found["mark"] == "not run" else None,
            found["said"] if found["mark"] == "file" else None,
        )
        for found in _FENCE.finditer(page.read_text(encoding="utf-8"))
    ]


def script_of(page: Path) -> str:
    """Return a bash script that follows a page: it writes its files, and runs all other blocks of
    `sh` and `python` that are not marked. It ends at the first command that fails, as a
    request does that is answered by an error."""
    parts = [_BEGIN]
    for block in blocks_of(page):
        if block.file is not None:
            parts.append(f"cat > {block.file} <<'THE_BLOCK'\n{block.text}THE_BLOCK\n")
        elif block.not_run is None and block.language == "sh":
            parts.append(block.text)
        elif block.not_run is None and block.language == "python":
            parts.append(f"python - <<'THE_BLOCK'\n{block.text}THE_BLOCK\n")
    return "".join(parts)
