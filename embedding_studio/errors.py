"""Every error Embedding Studio raises on purpose.

EmbeddingStudioError
├── ConfigurationError      a setting or a command line that cannot work
├── InvalidInput            a request that can never succeed as it is (HTTP 422)
│   └── InvalidTime         a session or event that is too old or in the future (HTTP 400)
├── Unauthorized            a request without a valid API key (HTTP 401)
├── Forbidden               an API key without the scope that is needed (HTTP 403)
├── NotFound                an id nobody knows (HTTP 404)
├── Conflict                a request that the present state refuses (HTTP 409)
├── TooManyRequests         a rate or a project's room is spent (HTTP 429); worth another try
├── StoreUnavailable        the database did not answer (HTTP 503); worth another try
├── ExecutorUnavailable     the place where trials run did not answer; worth another try
├── ForbiddenAddress        a host or a place that this installation keeps out of
├── Unreadable              a content that is too large, say; another try gives the same
├── DeliveryFailed          a webhook was not taken; worth another try
├── LeaseLost               a write by a worker that no longer owns the task
├── Draining                the worker is asked to end: the task goes back as it is
├── Stopped                 the task was asked to stop before there was anything to keep
├── MethodError             a fine-tuning method that cannot be used
│   ├── PluginError         its file fails to load, or two methods share a name
│   └── UnknownMethod       no method of that name (HTTP 422)
├── IterationError          the iteration as a whole cannot succeed
│   ├── NotEnoughData       the batch holds too little to learn from or to judge by
│   ├── AllTrialsFailed     no hyperparameter set gave a model
│   └── CorruptModel        a model read back is not the model that was saved
├── TrialInterrupted        raised by `report` inside a trial: unwind, do not catch
│   ├── TrialPruned         the search gave up on this hyperparameter set
│   └── TrialCanceled       end now; nothing counts
├── TrialTimedOut           the trial went on past its minutes
└── TrialCrashed            the trial's process ended without an answer
"""


class EmbeddingStudioError(Exception):
    """The root: catching it catches everything above and no programming error."""


class ConfigurationError(EmbeddingStudioError):
    pass


class InvalidInput(EmbeddingStudioError):
    pass


class InvalidTime(InvalidInput):
    pass


class Unauthorized(EmbeddingStudioError):
    pass


class Forbidden(EmbeddingStudioError):
    pass


class NotFound(EmbeddingStudioError):
    pass


class Conflict(EmbeddingStudioError):
    pass


class TooManyRequests(EmbeddingStudioError):
    pass


class StoreUnavailable(EmbeddingStudioError):
    pass


class ExecutorUnavailable(EmbeddingStudioError):
    pass


class ForbiddenAddress(EmbeddingStudioError):
    pass


class Unreadable(EmbeddingStudioError):
    pass


class DeliveryFailed(EmbeddingStudioError):
    pass


class LeaseLost(EmbeddingStudioError):
    pass


class Draining(EmbeddingStudioError):
    pass


class Stopped(EmbeddingStudioError):
    pass


class MethodError(EmbeddingStudioError):
    pass


class PluginError(MethodError):
    pass


class UnknownMethod(MethodError):
    pass


class IterationError(EmbeddingStudioError):
    pass


class NotEnoughData(IterationError):
    pass


class AllTrialsFailed(IterationError):
    pass


class CorruptModel(IterationError):
    pass


class TrialInterrupted(EmbeddingStudioError):
    pass


class TrialPruned(TrialInterrupted):
    pass


class TrialCanceled(TrialInterrupted):
    pass


class TrialTimedOut(EmbeddingStudioError):
    pass


class TrialCrashed(EmbeddingStudioError):
    pass


def unknown(what: str, its_id: str, hint: str = "") -> NotFound:
    """Return the error that names what was asked for and its id, which nobody knows."""
    return NotFound(f"no {what} has the id {its_id!r}{hint}")
