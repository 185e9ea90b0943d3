"""A new method's file: `example.py`, under another name."""

import re
from pathlib import Path

_EXAMPLE = Path(__file__).with_name("example.py")


def file_name(name: str) -> str:
    """Return what the file of a method of this name is called."""
    return f"{'_'.join(_words(name)).lower()}.py"


def text_of_new(name: str) -> str:
    """Return the text of a method's file. name: one that `check_model_name` takes."""
    text = _EXAMPLE.read_text(encoding="utf-8")
    class_name = "".join(word[0].upper() + word[1:] for word in _words(name))
    return text.replace("Example method", name).replace("ExampleMethod", class_name)


def _words(name: str) -> list[str]:
    """Return the words of a name as an identifier may have them."""
    words = re.findall(r"[^\W_]+", name)
    return words if words and words[0][0].isalpha() else ["Method", *words]
