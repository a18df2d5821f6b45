"""Secrets are redacted, and other text is not changed."""

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.redaction import (
    MASK,
    MIN_LENGTH,
    Redactor,
    check_uploads,
    command_redactor,
    config_secrets,
    is_secret_name,
    run_redactor,
)

SECRETS = st.text(
    st.characters(codec="utf-8", exclude_characters="[]"), min_size=MIN_LENGTH, max_size=40
)
# No text of these characters has the format of a key.
HARMLESS = st.text("abc ., \n\té→", max_size=200)


@pytest.mark.parametrize(
    "name",
    [
        "api_key",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "apiKey",
        "token",
        "AWS_SECRET_ACCESS_KEY",
        "client_secret",
        "PGPASSWORD",
        "db-password",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "Authorization",
        "accessToken",
        "GITHUB_TOKEN_2",
        "AZURE_STORAGE_CONNECTION_STRING",
        "SLURM_JWT",
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "max_tokens_per_device",
        "tokenizer",
        "experts_per_token",
        "TOKENIZERS_PARALLELISM",
        "pad_token",
        "image_token_id",
        "max_response_tokens",
        "api_key_env",
        "key",
        "prompt_key",
        "balance_dp_tokens",
        "skip_tokenizer_init",
        "token_level_rewards",
        "SSH_AUTH_SOCK",
        "password_file",
        "secretary",
    ],
)
def test_names_of_other_things(name):
    assert not is_secret_name(name)


@given(secret=SECRETS, before=st.text(max_size=30), after=st.text(max_size=30))
def test_given_secrets_are_redacted_in_every_form(secret, before, after):
    (line, *others) = secret.strip().splitlines() or [""]
    assume(not others and len(line.strip()) >= MIN_LENGTH and line.strip() not in MASK)
    redact = Redactor([secret])
    secret = line.strip()
    assert secret not in redact(before + secret + after)
    assert json.dumps(secret)[1:-1] not in redact(json.dumps({"text": f"{before}{secret}{after}"}))
    assert quote(secret, safe="") not in redact(f"http://host/?q={quote(secret, safe='')}")
    assert repr(secret)[1:-1] not in redact(repr([secret]))


@given(secret=SECRETS, text=HARMLESS)
def test_a_text_without_a_secret_is_not_changed(secret, text):
    redact = Redactor([secret])
    assume(not any(form in text for form in redact.secrets))
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "key sk-abcdefghijklmnop1234 used",
        "sk-ant-api03-abcdefghijklmnop_1234-x",
        "hf_AbCdEfGhIjKlMnOpQrStUvWx",
        "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        "github_pat_0123456789abcdefghijABCDEFGHIJ012345",
        "AKIAIOSFODNN7EXAMPLE",
        "Authorization: Bearer 0123456789abcdef.xyz",
        "{'authorization': 'bearer abcdefghijkl0123456'}",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123",
        "redis://:hunter2hunter2@cache:6379",
        "https://user:pw@host/v1?x=1",
    ],
)
def test_keys_are_recognized_by_their_format(text):
    shown = Redactor()(text)
    assert MASK in shown
    assert not re.search(r"hunter2|:pw@|[A-Za-z0-9]{16}", shown)


@pytest.mark.parametrize(
    "text",
    [
        "a task-oriented model: disk-backed-tokens-of-the-cache",
        "hf_model, hf_config_of_the_base_model_folder",
        "max_tokens=512 pad_token='<|endoftext|>' experts_per_token=2",
        "token-mean seq-mean-token-sum",
        "http://127.0.0.1:8000/v1 git@github.com:verl-project/verl.git",
        "https://host/a:b@c file:///tmp/x",
        "Bearer tokens are not used; session_2026-11-22_21-56-38_562795_11846",
        "0x7f2a sha256:0123456789abcdef",
        "(WorkerDict pid=9997) {'api_key_env': None, 'api_key': None, 'token': ''}",
    ],
)
def test_text_that_resembles_a_key_is_not_changed(text):
    assert Redactor()(text) == text


def test_secret_of_several_lines_is_redacted_line_by_line():
    shown = Redactor(["-----BEGIN KEY-----\nfirstline\nsecondline\n"])(
        "x firstline\ny secondline\n"
    )
    assert shown == f"x {MASK}\ny {MASK}\n"


def test_secret_that_contains_another_is_redacted_as_a_whole():
    assert Redactor(["abcdef", "abcdefghi"])("abcdefghi") == MASK


@pytest.fixture
def composed():
    config, _ = compose_run(
        [
            "stage=rlvr",
            "prism.reward.judge.endpoint='https://me:p4ss@judge/v1'",
            "prism.reward.judge.model=m",
            "prism.reward.judge.api_key_env=THE_JUDGE",
            "++ray_kwargs.ray_init.runtime_env.env_vars.MY_TOKEN=planted-1",
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.api_key=[planted-2,1234567]",
        ]
    )
    return config


def test_shown_config_lacks_only_the_secrets(composed):
    redact = run_redactor(
        composed, {"THE_JUDGE": "planted-3", "HF_TOKEN": "planted-4", "HOME": "/home/me"}
    )
    shown = redact.config(composed)
    assert not re.search("planted|p4ss|1234567", OmegaConf.to_yaml(shown))
    assert shown.prism.reward.judge.endpoint == f"https://{MASK}@judge/v1"
    assert shown.actor_rollout_ref.rollout.engine_kwargs.vllm.api_key == [MASK, MASK]
    assert shown.prism.reward.judge.api_key_env == "THE_JUDGE"
    own = composed.ray_kwargs.ray_init.runtime_env.env_vars.MY_TOKEN
    assert own == "planted-1", "the run's own config is not changed"
    log = "planted-1 planted-2 1234567 planted-3 planted-4 /home/me max_tokens"
    assert redact(log) == " ".join([MASK] * 5) + " /home/me max_tokens"


@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rlvr", "eval"])
def test_config_without_secrets_is_shown_unchanged(stage):
    config, _ = compose_run([f"stage={stage}"])
    assert not list(config_secrets(config))
    assert OmegaConf.to_yaml(run_redactor(config, {}).config(config)) == OmegaConf.to_yaml(config)


def test_message_about_the_command_line_has_no_secrets():
    redact = command_redactor(
        ["stage=sft", "+x.api_key=planted-1", "+y={password: 'planted-2', size: 10}"], {}
    )
    assert redact("x.api_key=planted-1 y={password: planted-2} stage=sft") == (
        f"x.api_key={MASK} y={{password: {MASK}}} stage=sft"
    )


def test_logger_that_uploads_the_config_gets_no_secrets(composed):
    check_uploads(composed)
    composed.prism.loggers = ["file", "wandb"]
    with pytest.raises(
        UserError,
        match=r"wandb would upload the whole config, and prism\.reward\.judge\.endpoint in",
    ):
        check_uploads(composed)
