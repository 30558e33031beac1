"""The config.json of a toy base of each kind, before it is mutated."""

SHAPES = {
    "llama": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": True,
        "rope_theta": 10000.0, "head_dim": 8, "eos_token_id": [257], "bos_token_id": 256, "rope_scaling": None,
    },
    "gemma3": {
        "model_type": "gemma3_text", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 8, "rope_theta": 1e6,
        "rope_local_base_freq": 1e4, "sliding_window_pattern": 2, "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": 30.0, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3": {
        "model_type": "phi3", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 100,
        "original_max_position_embeddings": 16, "partial_rotary_factor": 0.5, "tie_word_embeddings": False,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [1.5, 4.0]},
    },
    "smollm3": {
        "model_type": "smollm3", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 9,
        "no_rope_layer_interval": 4, "use_sliding_window": True, "attention_bias": True,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32, "mscale": 1.0},
    },
    "qwen2": {
        "model_type": "qwen2", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "max_window_layers": 1,
        "use_sliding_window": True, "sliding_window": 9, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
    },
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 259, "n_embd": 32, "n_layer": 2,
        "n_head": 4, "n_positions": 64, "n_inner": 48, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
    },
    "bert": {
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": 259, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0,
        "hidden_dropout_prob": 0.1, "id2label": {"0": "no", "1": "yes"}, "classifier_dropout": None,
    },
    "deberta": {
        "model_type": "deberta-v2", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "relative_attention": True,
        "position_biased_input": False, "pos_att_type": "c2p|p2c", "share_att_key": True, "norm_rel_ebd": "layer_norm",
        "position_buckets": 16, "type_vocab_size": 0, "conv_kernel_size": 3, "conv_act": "gelu",
    },
}  # fmt: skip
