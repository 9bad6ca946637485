"""Encoders, and encoders with a decoder."""

from breadth.sizes import GEMMA, GROUPED, TEXT, VOCAB

ENCODERS = {
    "bert": TEXT,
    "roberta": TEXT,
    "distilbert": {
        "vocab_size": VOCAB,
        "dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 10,
        "max_position_embeddings": 16,
    },
    "albert": {**TEXT, "embedding_size": 6},
    "electra": {**TEXT, "embedding_size": 6},
    "deberta-v2": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4},
    "modernbert": {**TEXT, "local_attention": 4, "global_attn_every_n_layers": 2},
    "mpnet": TEXT,
    "fnet": {k: v for k, v in TEXT.items() if k != "num_attention_heads"},
    "roformer": {**TEXT, "embedding_size": 6},
    "longformer": {**TEXT, "attention_window": 4},
    "eurobert": GROUPED,
}

_T5 = {
    "vocab_size": VOCAB,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 10,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 4,
}
PAIR = {
    "vocab_size": VOCAB,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 10,
    "decoder_ffn_dim": 10,
    "max_position_embeddings": 16,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
    "activation_function": "gelu",
}
ENCODER_DECODERS = {
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
    "switch_transformers": {
        **_T5,
        "num_decoder_layers": 2,
        "num_experts": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    "bart": PAIR,
    "mbart": PAIR,
    "pegasus": PAIR,
    "marian": {**PAIR, "decoder_vocab_size": VOCAB},
    "blenderbot": PAIR,
    "nllb-moe": {**PAIR, "num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "led": {
        **{k: v for k, v in PAIR.items() if k != "max_position_embeddings"},
        "max_encoder_position_embeddings": 16,
        "max_decoder_position_embeddings": 16,
        "attention_window": 4,
    },
    "fsmt": {**PAIR, "langs": ["a", "b"], "src_vocab_size": VOCAB, "tgt_vocab_size": VOCAB},
    "prophetnet": {
        "vocab_size": VOCAB,
        "hidden_size": 8,
        "encoder_ffn_dim": 10,
        "num_encoder_layers": 2,
        "num_encoder_attention_heads": 2,
        "decoder_ffn_dim": 10,
        "num_decoder_layers": 2,
        "num_decoder_attention_heads": 2,
        "max_position_embeddings": 16,
        "ngram": 2,
        "num_buckets": 4,
        "relative_max_distance": 8,
    },
    "t5gemma": {
        "encoder": GEMMA,
        "decoder": {**GEMMA, "cross_attention_hidden_size": 8},
        "vocab_size": VOCAB,
    },
}
