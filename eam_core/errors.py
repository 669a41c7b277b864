"""Errors that a user can mend: each message says what was expected, what came and what to do."""


class EAMError(Exception):
    """Base of every error whose cause lies in a file or setting of the user's."""


class ImageError(EAMError):
    """A picture cannot be read, used or written."""


class CheckpointError(EAMError):
    """A weight file is not what was asked for: wrong kind, damaged, or of another size."""


class DiskError(EAMError):
    """A result could not be written whole; nothing was left under its name."""


class FolderError(EAMError):
    """A folder may not be used, or not as it was asked for."""
