"""Every error Embedding Studio raises on purpose, in one tree."""


class EmbeddingStudioError(Exception):
    """The root: catching it catches every error below and no programming error."""


class ConfigurationError(EmbeddingStudioError):
    """A setting or a command line that cannot work."""


class InvalidInput(EmbeddingStudioError):
    """A request that can never succeed as it is (HTTP 422)."""


class InvalidTime(InvalidInput):
    """A session or event that is too old or in the future (HTTP 400)."""


class Unauthorized(EmbeddingStudioError):
    """A request without a valid API key (HTTP 401)."""


class Forbidden(EmbeddingStudioError):
    """An API key without the scope that is needed (HTTP 403)."""


class NotFound(EmbeddingStudioError):
    """An id nobody knows (HTTP 404)."""


class Conflict(EmbeddingStudioError):
    """A request that the present state refuses (HTTP 409)."""


class TooManyRequests(EmbeddingStudioError):
    """A rate or a project's room is spent (HTTP 429); worth another try."""


class StoreUnavailable(EmbeddingStudioError):
    """The database did not answer (HTTP 503); worth another try."""


class ExecutorUnavailable(EmbeddingStudioError):
    """The place where trials run did not answer; worth another try."""


class ForbiddenAddress(EmbeddingStudioError):
    """A host or a place that this installation keeps out of."""


class Unreadable(EmbeddingStudioError):
    """A content that is too large, say; another try gives the same."""


class DeliveryFailed(EmbeddingStudioError):
    """A webhook was not taken; worth another try."""


class LeaseLost(EmbeddingStudioError):
    """A write by a worker that no longer owns the task."""


class Draining(EmbeddingStudioError):
    """The worker is asked to end: the task goes back as it is."""


class Stopped(EmbeddingStudioError):
    """The task was asked to stop before there was anything to keep."""


class MethodError(EmbeddingStudioError):
    """A fine-tuning method that cannot be used."""


class PluginError(MethodError):
    """Its file fails to load, or two methods share a name."""


class UnknownMethod(MethodError):
    """No method of that name (HTTP 422)."""


class IterationError(EmbeddingStudioError):
    """The iteration as a whole cannot succeed."""


class NotEnoughData(IterationError):
    """The batch holds too little to learn from or to judge by."""


class AllTrialsFailed(IterationError):
    """No hyperparameter set gave a model."""


class CorruptModel(IterationError):
    """A model read back is not the model that was saved."""


class TrialInterrupted(EmbeddingStudioError):
    """Raised by `report` inside a trial: unwind, do not catch."""


class TrialPruned(TrialInterrupted):
    """The search gave up on this hyperparameter set."""


class TrialCanceled(TrialInterrupted):
    """End now; nothing counts."""


class TrialTimedOut(EmbeddingStudioError):
    """The trial went on past its minutes."""


class TrialCrashed(EmbeddingStudioError):
    """The trial's process ended without an answer."""


def unknown(what: str, its_id: str, hint: str = "") -> NotFound:
    """Return the error that names what was asked for and its id, which nobody knows."""
    return NotFound(f"no {what} has the id {its_id!r}{hint}")
