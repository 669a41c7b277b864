"""Errors that a user can mend: each message says what was expected, what came and what to do."""

LONGEST = 2000  # characters of a message
# Marks that some languages need and that steer nothing: hard, wide and narrow spaces, and what joins letters or not.
_HARMLESS = "\u00a0\u3000\u202f\u200c\u200d"


def printable(text: object, longest: int = LONGEST) -> str:
    """Write a text on one line that steers no terminal and hides nothing: file names may hold any character.

    Args:
        text: what to show; control characters, marks of direction and bytes that are no text become such as \\x1b.
        longest: characters to show; of a longer one the middle is left out.
    """
    shown = str(text)
    if len(shown) > longest:
        end = longest // 4
        shown = f"{shown[: longest - end]} ... {shown[-end:]}"
    if shown.isprintable():
        return shown
    return "".join(
        each if each.isprintable() or each in _HARMLESS else each.encode("unicode_escape").decode() for each in shown
    )


def check_text(name: str, text: str, longest: int = 20_000) -> None:
    """Refuse a text that no tokenizer takes, or that is far longer than any model reads.

    Args:
        name: of the setting, for the message.
        text: such as a prompt.
        longest: characters; SD3 reads about a thousand.

    Raises:
        ValueError: it is too long, or holds bytes that are no text.
    """
    if len(text) > longest:
        raise ValueError(f"expected {name} of at most {longest} characters, got {len(text)}; shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected {name} to be text, got {text[error.start]!r} in it; type it again") from error


class EAMError(Exception):
    """Base of every error whose cause lies in a file or setting of the user's; its message is `printable`."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class ImageError(EAMError):
    """A picture cannot be read, used or written."""


class CheckpointError(EAMError):
    """A weight file is not what was asked for: wrong kind, damaged, or of another size."""


class DiskError(EAMError):
    """A result could not be written whole; nothing was left under its name."""


class FolderError(EAMError):
    """A folder may not be used, or not as it was asked for."""
