"""What MLflow finds in the environment, of this process and of those that it starts."""

import os

_UNLESS_SET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # read when MLflow is loaded
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # its server starts five processes of 240 MB for jobs of its own, none of which we ask for
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    # a request is given up after half a minute, not after four: the worker waits out what is longer
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_ALWAYS = {
    # models are files that run no code; nothing else is to be loaded in our processes
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ALLOW_MODEL_CODE_EXECUTION": "false",
}


def set_environment() -> None:
    """Set MLflow's variables; to be called before it is loaded. Repeating it changes nothing."""
    for name, value in _UNLESS_SET.items():
        os.environ.setdefault(name, value)
    os.environ.update(_ALWAYS)
