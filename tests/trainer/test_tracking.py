"""The warm-up's metrics go to verl's loggers too."""

import json

from verl_prism.compose import compose_run
from verl_prism.trainer.tracking import TrackedMetrics


def test_a_step_is_written_to_the_file_and_the_other_loggers(tmp_path, capfd):
    settings = (f"prism.output={tmp_path}", "prism.loggers=[console]")
    _, prism = compose_run(["stage=warmup", *settings])
    with TrackedMetrics(prism) as log:
        log.step(3, {"loss": 0.5})
    assert "step:3 - loss:0.5" in capfd.readouterr().out
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 3, "data": {"loss": 0.5}}]
