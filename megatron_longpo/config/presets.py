"""Named sets of values: the paper's settings, the public release's, and the baselines that both compare with.

A preset changes only what it names. A configuration file and flags win over it.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

PRESETS: MappingProxyType[str, MappingProxyType[str, Any]] = MappingProxyType(
    {
        # The paper (arXiv 2502.13922) names objective, optimizer, learning rate and batch; the schedule, on which it is
        # silent, is the README's of the public code. These are also the defaults of the schema.
        "paper": MappingProxyType(
            {
                "beta": 0.1,  # experimental setup
                "preference_weight": 0.01,  # lambda of Eq. 14, experimental setup
                "nll_weight": 1.0,  # Eq. 14
                "nll_scope": "all",  # Eq. 14: S_L is the whole chosen sequence
                "turn_aggregation": "sum",  # Eq. 13
                "reference_context": "short",  # Eq. 12: pi_ref(y | x_S)
                "optimizer": "adam",  # experimental setup
                "lr": 5e-7,  # experimental setup
                "global_batch_size": 8,  # experimental setup
                "lr_decay_style": "cosine",  # README of the public code
                "lr_warmup_fraction": 0.1,  # README of the public code
                "weight_decay": 0.0,  # README of the public code
            }
        ),
        # README and defaults of the public code (DAMO-NLP-SG/LongPO): they differ from the paper in these.
        "release": MappingProxyType({"beta": 0.01, "optimizer": "rmsprop"}),
        # Supervised fine-tuning on the chosen answers with long inputs (the paper's SFT baseline, with its learning rate).
        "sft": MappingProxyType({"nll_scope": "answers", "nll_weight": 1.0, "preference_weight": 0.0, "lr": 2e-5}),
        # The paper's DPO baseline: the reference reads the long chat like the policy. Whether the authors kept the NLL
        # beside it is not stated; plain DPO (arXiv 2305.18290, Eq. 7) has none.
        "dpo": MappingProxyType({"preference_weight": 1.0, "nll_weight": 0.0, "reference_context": "long"}),
        # The paper's ablations: without the short-to-long constraint, and (Figure 4) without the NLL term.
        "longpo-no-s2l": MappingProxyType({"reference_context": "long"}),
        "longpo-no-nll": MappingProxyType({"nll_weight": 0.0}),
        # SFT held close to what the model says from the short context: the paper's "SFT-Chosen-Constraint" (Figure 4), with the
        # divergence that its public code does not compute. The rest is the SFT baseline's.
        "sft-s2l": MappingProxyType(
            {
                "loss_type": "sft-s2l",
                "nll_scope": "answers",
                "nll_weight": 1.0,
                "preference_weight": 1.0,
                "reference": "live",
                "lr": 2e-5,
            }
        ),
        # SimPO (arXiv 2405.14734) on long chats, with beta and gamma of its Llama-3-Base setting.
        "simpo": MappingProxyType(
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "preference_weight": 1.0, "nll_weight": 0.0}
        ),
        # SoLoPO (arXiv 2505.11166): its preference losses on short contexts, aligned with the long one; alpha is the paper's by
        # default. SimPO's values are those above; ORPO's lambda (here beta) and its NLL beside it are ORPO's (arXiv 2403.07691).
        "solo-dpo": MappingProxyType({"loss_type": "solo-dpo", "preference_weight": 1.0, "nll_weight": 0.0}),
        "solo-simpo": MappingProxyType(
            {"loss_type": "solo-simpo", "beta": 2.0, "simpo_gamma": 1.0, "preference_weight": 1.0, "nll_weight": 0.0}
        ),
        "solo-orpo": MappingProxyType(
            {"loss_type": "solo-orpo", "beta": 0.1, "preference_weight": 1.0, "nll_weight": 1.0, "nll_scope": "answers"}
        ),
    }
)
