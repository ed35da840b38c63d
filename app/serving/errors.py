"""What serving can answer instead of outputs. Nouns only: `app.http.errors` owns the status numbers.

ServingError
├── InvalidInput        the request does not fit the model
├── UnknownModel        no such model, version, or no version that serves
├── ModelNotReady       known, but still loading or already unloading
├── Rejected            refused at entry
│   ├── QueueFull       too many rows or requests wait
│   ├── Stopping        the server or the model admits nothing more
│   ├── Elsewhere       another server does this
│   ├── EngineGone      the process that runs the engines has ended
│   └── LoadedAnew      what the request was checked against is no longer what is served
├── DeadlineExceeded    waited longer than the request's or the queue's timeout
├── DeviceGone          a GPU was lost; the process is to be started anew
├── Cancelled           the client left; nobody reads this answer
└── InferenceFailed     the engine raised; the whole batch failed, and nothing else
"""

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "DeviceGone",
    "Elsewhere",
    "EngineGone",
    "InferenceFailed",
    "InvalidInput",
    "LoadedAnew",
    "ModelNotReady",
    "QueueFull",
    "Rejected",
    "ServingError",
    "Stopping",
    "UnknownModel",
]  # fmt: skip


class ServingError(Exception):
    """Base of every answer that is not outputs; the message is for the client."""


class InvalidInput(ServingError):
    """The request does not fit the model."""


class UnknownModel(ServingError):
    """No such model or version."""


class ModelNotReady(ServingError):
    """The model is loading or unloading; a later try may succeed."""


class Rejected(ServingError):
    """Refused at entry, before it waited. `retry_after_s` is when another try may find room."""

    retry_after_s: int = 1


class QueueFull(Rejected):
    """The queue's limit of rows or requests is reached."""


class Stopping(Rejected):
    """The server or the model is stopping."""


class Elsewhere(Rejected):
    """Another server does this; it may be this one's turn later."""


class EngineGone(Rejected):
    """The process that runs the engines has ended; it is started anew."""


class LoadedAnew(Rejected):
    """The model was loaded anew after the request was checked; whoever checked it looks again."""


class DeadlineExceeded(ServingError):
    """The request waited longer than it may."""


class DeviceGone(ServingError):
    """The GPU that the model runs on was lost; nothing runs on it in this process any more."""


class Cancelled(ServingError):
    """The client left or cancelled."""


class InferenceFailed(ServingError):
    """The engine raised while it ran the batch that this request was part of."""
