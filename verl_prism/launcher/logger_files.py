"""Where verl's loggers write: below the output folder, unless the user's variables differ."""

import os

from verl_prism.config import PROJECT, Prism
from verl_prism.run_folder import RunFolder


def logger_environment(run: RunFolder) -> dict[str, str]:
    """Return the variables that keep what verl's loggers write below the output folder.

    MLFLOW_DISABLE_TELEMETRY: no usage statistics; mlflow does not follow DO_NOT_TRACK=1.
    """
    return {
        "TENSORBOARD_DIR": str(run.path / "tensorboard"),
        "WANDB_DIR": str(run.path),
        "WANDB_DATA_DIR": str(run.path / "wandb" / "data"),  # images, until they are uploaded
        "WANDB_CACHE_DIR": str(run.path / "wandb" / "cache"),
        "SWANLAB_LOG_DIR": str(run.path / "swanlog"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{run.path / 'mlruns.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(run.path / "trackio"),
    }


def prepare_loggers(prism: Prism) -> None:
    """Let mlflow write images below the output folder too, in the stage's process.

    No variable sets that folder for a local database: by default it is in the working directory.
    mlflow calls the project an experiment.
    """
    run = RunFolder(prism.output)
    uri = logger_environment(run)["MLFLOW_TRACKING_URI"]
    if "mlflow" not in prism.loggers or os.environ["MLFLOW_TRACKING_URI"] != uri:
        return
    import mlflow

    client = mlflow.MlflowClient(uri)
    if client.get_experiment_by_name(PROJECT) is None:
        client.create_experiment(PROJECT, artifact_location=str(run.path / "mlruns"))
