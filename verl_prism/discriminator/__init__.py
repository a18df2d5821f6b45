"""The discriminator as a library on torch, transformers, safetensors, numpy and Pillow.

Importing this package registers the model with the Auto classes of transformers.
"""

from verl_prism.discriminator.batch import (
    Group,
    GroupEncoder,
    Prompt,
    group_sizes,
    span_tokens,
    valid_pairs,
)
from verl_prism.discriminator.costs import FlopModel, GroupSizes, training_factor
from verl_prism.discriminator.loss import GroupScores, pair_metrics, pair_sums
from verl_prism.discriminator.model import (
    DiscriminatorConfig,
    PrismDiscriminatorForTokenClassification,
    load_discriminator,
)
from verl_prism.discriminator.pairs import (
    PairIndex,
    PromptTexts,
    count_rollouts,
    index_pairs,
    mismatched_teachers,
    rollout_spans,
    shuffled_batches,
    teacher_spans,
)
from verl_prism.discriminator.plan import Part, RankPlan, assign, local_plan
from verl_prism.discriminator.prompts import encode_prompt, prompt_text
from verl_prism.discriminator.published import convert_published
from verl_prism.discriminator.ranks import (
    Ranks,
    on_ranks,
    process_group,
    shard,
)
from verl_prism.discriminator.settings import LossSettings, StepSettings
from verl_prism.discriminator.spans import (
    VIEWS,
    SpanIds,
    Spans,
    scored_spans,
    tokenize_spans,
    view_limits,
)
from verl_prism.discriminator.step import DiscriminatorStep, Optimization, StepResult
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.discriminator.update import Backward, MiniBatch, backward_groups, score_groups

__all__ = [
    "VIEWS",
    "Backward",
    "DiscriminatorConfig",
    "DiscriminatorStep",
    "FlopModel",
    "Group",
    "GroupEncoder",
    "GroupScores",
    "GroupSizes",
    "LossSettings",
    "MiniBatch",
    "Optimization",
    "PairIndex",
    "Part",
    "PrismDiscriminatorForTokenClassification",
    "Prompt",
    "PromptTexts",
    "RankPlan",
    "Ranks",
    "SpanIds",
    "Spans",
    "StepResult",
    "StepSettings",
    "assign",
    "backward_groups",
    "convert_published",
    "count_rollouts",
    "encode_prompt",
    "group_sizes",
    "index_pairs",
    "load_discriminator",
    "local_plan",
    "mismatched_teachers",
    "on_ranks",
    "pair_metrics",
    "pair_sums",
    "process_group",
    "prompt_text",
    "rollout_spans",
    "score_groups",
    "scored_spans",
    "shard",
    "shuffled_batches",
    "span_tokens",
    "teacher_spans",
    "tokenize_spans",
    "training_factor",
    "upcycle",
    "valid_pairs",
    "view_limits",
]
