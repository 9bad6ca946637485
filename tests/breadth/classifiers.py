"""Classifiers of texts and of images."""

from breadth.encoders import ENCODERS, PAIR
from breadth.sizes import GPT, GROUPED, TEXT, VOCAB

CLASSIFIERS = {
    "llama/classes": GROUPED,
    "gpt2/classes": GPT,
    "bert/classes": TEXT,
    "deberta-v2/classes": ENCODERS["deberta-v2"],
    "bart/classes": PAIR,
    "xlnet/classes": {"vocab_size": VOCAB, "d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 10},
}

_WIDE = {k: v for k, v in TEXT.items() if k not in ("vocab_size", "max_position_embeddings")}
_PATCHES = {**_WIDE, "image_size": 16, "patch_size": 8}
IMAGES = {
    "vit": _PATCHES,
    "deit": {**_PATCHES, "architectures": ["DeiTForImageClassification"]},
    "beit": {**_PATCHES, "use_relative_position_bias": True, "use_mask_token": False},
    "dinov2": {**{k: v for k, v in _PATCHES.items() if k != "intermediate_size"}, "mlp_ratio": 1},
    "swin": {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 4,
        "depths": [2, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [4, 8], "depths": [1, 2], "num_stages": 2, "patch_size": 2},
    "resnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"},
}
