"""Refusals: what a user can cause, said in one sentence.

The sentence names the thing, the value and the remedy. The command line prints it, the service sends it as
`application/problem+json` with the class's `status` and `title`; neither adds to it.
"""


class Refusal(Exception):
    """Something asked for cannot be done as asked. `str(refusal)` is the whole sentence."""

    status: int = 422  # the HTTP status the service answers with
    title: str = "Cannot be processed"


class Malformed(Refusal):
    """The bytes are not what their type says: broken JSON, npy, multipart."""

    status = 400
    title = "Malformed request"


class NotAuthenticated(Refusal):
    """No key, or one that is not known or was revoked."""

    status = 401
    title = "Not authenticated"


class NotAllowed(Refusal):
    """The key is known but lacks the scope."""

    status = 403
    title = "Not allowed"


class NotFound(Refusal):
    """No model, version, alias or file of that name."""

    status = 404
    title = "Not found"


class Conflict(Refusal):
    """The name is taken, or the state does not allow it."""

    status = 409
    title = "Conflict"


class TooLarge(Refusal):
    """More bytes, pixels or samples than the limit."""

    status = 413
    title = "Too large"


class UnsupportedType(Refusal):
    """A content type or file format that nothing here reads."""

    status = 415
    title = "Unsupported type"


class Damaged(Refusal):
    """A bundle or store file that is not what was written."""

    status = 500
    title = "Damaged bundle"


class Unfit(Refusal):
    """A bundle whose graph cannot be used for what its spec and calibration say."""

    title = "Unfit bundle"
