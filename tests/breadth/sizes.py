"""What many tiny configs have in common: two layers, two heads, a window shorter than the rows, few experts."""

VOCAB = 24
WINDOW = 3

WIDE = {"vocab_size": VOCAB, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**WIDE, "intermediate_size": 10, "max_position_embeddings": 16}
GROUPED = {**TEXT, "num_key_value_heads": 1, "head_dim": 4}
GPT = {"vocab_size": VOCAB, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = {**GROUPED, "sliding_window": WINDOW, "query_pre_attn_scalar": 4}

# ReLU and its square, a choice among experts, a maximum: the Hessian jumps somewhere.
NOT_SMOOTH = {
    "opt",
    "nemotron",
    "persimmon",
    "apertus",
    "ctrl",
    "rwkv",
    "xlstm",
    "nemotron_h",
    "jamba",
    "qwen3_next",
    "granitemoehybrid",
    "t5",
    "switch_transformers",
    "nllb-moe",
    "resnet",
}
