"""verl's controller process, with our registrations in it."""

from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

from verl_prism import plugin


class PrismTaskRunner(TaskRunnerV1.__ray_actor_class__):  # type: ignore[name-defined]
    """verl's registries hold for one process: our trainers are registered in this one."""

    def run(self, config: DictConfig) -> None:
        plugin.assert_loaded()
        import verl_prism.trainer.ppo

        if config.prism.stage == "align":
            import verl_prism.alignment.trainer  # noqa: F401
        super().run(config)
