from verl_prism.cpu.environment import cpu_environment


def test_every_variable_is_explained():
    explained = cpu_environment.__doc__
    unexplained = [name for name in cpu_environment() if name not in explained]
    quiet = {
        "TOKENIZERS_PARALLELISM",
        "TRANSFORMERS_VERBOSITY",
        "VLLM_LOGGING_LEVEL",
        "TQ_LOGGING_LEVEL",
    }
    assert set(unexplained) == quiet | {"PYTHONWARNINGS"}


def test_all_values_are_strings():
    assert all(isinstance(value, str) for value in cpu_environment().values())


def test_verl_has_an_fsdp_engine_for_the_selected_device():
    from verl.workers.engine import EngineRegistry

    device = cpu_environment()["VERL_ENGINE_DEVICE"]
    assert device in EngineRegistry._engines["language_model"]["fsdp2"]
