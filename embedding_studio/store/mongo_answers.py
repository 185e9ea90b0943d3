"""What MongoDB's answers mean in our own errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from bson import ObjectId
from bson.errors import BSONError
from pymongo import errors as mongo_errors

from embedding_studio.errors import InvalidInput, StoreUnavailable

NO_CODE = 0
# BSONObjectTooLarge, two codes of growing one by an update, DollarPrefixedFieldName, too deep
UNSTORABLE = {10334, 17419, 17420, 52, 15}
# OutOfDiskSpace, over Atlas's quota, UserWritesBlocked, Unauthorized: it may write again later
TAKES_NO_WRITES = {14031, 8000, 371, 13}


@contextmanager
def answering() -> Iterator[None]:
    """Say in our own errors that the database does not answer or cannot hold a document."""
    try:
        yield
    except mongo_errors.PyMongoError as error:
        if (refusal := unstorable(error)) is not None:
            raise refusal from None
        code, reason = _refusal(error)
        if code is None or error.timeout:
            raise StoreUnavailable(f"MongoDB does not answer: {reason}") from error
        if code in TAKES_NO_WRITES:
            raise StoreUnavailable(f"MongoDB takes no writes: {reason}") from error
        raise
    except (BSONError, OverflowError, UnicodeEncodeError) as error:
        raise InvalidInput(f"MongoDB cannot store this: {error}") from error


def unstorable(error: mongo_errors.PyMongoError) -> InvalidInput | None:
    """Return what to say where the database refused what no document can hold."""
    code, reason = _refusal(error)
    return InvalidInput(f"MongoDB cannot store this: {reason}") if code in UNSTORABLE else None


def _refusal(error: mongo_errors.PyMongoError) -> tuple[int | None, str]:
    """Return the server's code for refusing, None where it gave no answer, and the reason."""
    if isinstance(error, mongo_errors.BulkWriteError):
        refused = error.details["writeErrors"]
        if not refused:
            return None, str(error.details["writeConcernErrors"])
        return refused[0]["code"], refused[0]["errmsg"]  # its own text repeats the documents
    if isinstance(error, mongo_errors.ConnectionFailure | mongo_errors.WriteConcernError):
        return None, str(error)
    details = getattr(error, "details", None) or {}
    return getattr(error, "code", NO_CODE) or NO_CODE, details.get("errmsg") or str(error)


def id_of(text: str) -> ObjectId | None:
    """Return an id no document has, None, for a text that is no id."""
    return ObjectId(text) if ObjectId.is_valid(text) else None
