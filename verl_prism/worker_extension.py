"""verl's extension of vLLM's workers, which receives weights through the run's own socket."""

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from verl_prism.weight_transfer import own_socket


class PrismWorkerExtension(vLLMColocateWorkerExtension):
    """Selected by the config key `rollout.engine_kwargs.vllm.worker_extension_cls`."""

    def _get_zmq_handle(self) -> str:
        return own_socket(super()._get_zmq_handle())
