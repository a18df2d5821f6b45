"""verl's controller process, in which our trainers are registered."""

from omegaconf import DictConfig
from verl.trainer.main_ppo import TaskRunnerV1

from verl_prism import plugin


class PrismTaskRunner(TaskRunnerV1.__ray_actor_class__):  # type: ignore[name-defined]
    """verl's registries are local to a process, so the trainers are imported here."""

    def run(self, config: DictConfig) -> None:
        """Run verl's PPO trainer that the config selects."""
        plugin.assert_loaded()
        import verl_prism.trainer.ppo

        if config.prism.stage == "align":
            import verl_prism.alignment.trainer  # noqa: F401
        super().run(config)
