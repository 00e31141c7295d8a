//! Errors about any kind of value at any key of a configuration are in plain words.

use hybridnorm::train::Config;

const TEXT: &str = r#"
[model]
d_model = 16
n_layers = 2
n_heads = 2
vocab_size = 257
[model.moe]
n_experts = 4
top_k = 2
d_expert = 8
[model.mla]
kv_rank = 8
nope_dim = 4
rope_dim = 4
v_dim = 4
[data]
train = ["stories:60"]
tokenizer = "bytes"
[schedule]
kind = "wsd"
"#;

const KEYS: &str = "seed model init init.from data optimizer schedule train log \
    model.d_model model.n_layers model.n_heads model.n_kv_heads model.d_ff model.vocab_size \
    model.max_seq_len model.rope_theta model.rope_dim model.rope_scaling model.position_embedding \
    model.bias model.bias.qkv model.attention_overrides model.tie_embeddings model.activation model.moe model.mla \
    model.moe.n_experts model.moe.scoring model.moe.renormalize model.moe.scaling model.mla.q_rank \
    model.placement model.norm model.init model.norm.kind model.norm.eps model.norm.gain \
    model.norm.bias model.init.scheme model.init.std model.placement.block \
    model.placement.block.attn.skip model.placement.block.attn.out_norm \
    model.placement.block.attn_inner.q_norm model.placement.block.attn_inner.norm_eps \
    model.placement.block.attn_inner.attn_scale model.placement.block.topology \
    model.placement.overrides model.placement.streams data.train data.validation data.tokenizer \
    data.order optimizer.kind optimizer.lr optimizer.betas optimizer.eps optimizer.weight_decay \
    schedule.kind schedule.warmup_steps schedule.warmup_tokens schedule.min_lr_ratio train.steps \
    train.batch_size train.seq_len train.recompute train.eval_every train.keep_checkpoints \
    log.layers_every log.tensorboard log.dumps";

/// Terms of Rust and of its libraries.
const RUST: [&str; 16] = [
    "usize",
    "u64",
    "u32",
    "i64",
    "f64",
    "f32",
    "struct",
    "enum ",
    "variant",
    "boolean",
    "invalid type",
    "invalid value",
    "Option",
    "Vec<",
    "unit value",
    "a sequence",
];

#[test]
fn example_configuration_is_valid() {
    Config::parse(TEXT, &[]).unwrap();
}

fn problem(setting: &str) -> Option<String> {
    let settings = [setting.to_owned()];
    let error = Config::parse(TEXT, &settings).err()?;
    Some(error.to_string())
}

#[test]
fn type_errors_do_not_mention_rust_types() {
    let values = [
        "true",
        "-1",
        "1.5",
        "'x'",
        "'1e-3'",
        "[]",
        "[[1], 'a']",
        "{}",
        "{ x = 1 }",
        "1979-05-27",
        "9223372036854775807",
    ];
    let mut rejected = 0;
    for key in KEYS.split_whitespace() {
        for value in values {
            let setting = format!("{key}={value}");
            let Some(text) = problem(&setting) else {
                continue;
            };
            rejected += 1;
            assert_eq!(text.lines().count(), 1, "{setting}: {text}");
            for word in RUST {
                assert!(!text.contains(word), "{setting}: {word:?} in {text}");
            }
        }
    }
    assert!(rejected > 400, "{rejected}");
}

/// Misspelled settings, and what the error says about each.
const MISSPELLED: &[(&str, &str)] = &[
    ("model.n_layer=4", "did you mean `n_layers`"),
    ("model.hidden_size=4", "did you mean `d_model`"),
    ("model.num_key_value_heads=1", "did you mean `n_kv_heads`"),
    ("optimizer.learning_rate=1e-3", "did you mean `lr`"),
    ("train.max_steps=3", "did you mean `steps`"),
    ("optimizer.lr='1e-3'", "write 1e-3 without quotation marks"),
    (
        "train.steps=1e3",
        "write 1000 without a decimal point or exponent",
    ),
    ("model.q_norm=true", "q_norm = \"per_head\""),
    ("model.qk_norm=true", "q_norm = \"per_head\""),
    (
        "model.placement.block.attn_inner.q_norm=true",
        "as in \"per_head\"",
    ),
    ("model.norm='pre'", "placement = \"pre-norm\""),
    ("model.placement='prenorm'", "nearest known: `pre-norm`"),
    ("model.placement=true", "placement = \"pre-norm\""),
    ("model.norm.kind='layer_norm'", "did you mean `layernorm`"),
    ("model.dtype='bf16'", "train.precision = \"bf16\""),
    (
        "train.residual_precision='bf16'",
        "set train.precision = \"bf16\"",
    ),
    (
        "train.bf16_weight_copies=true",
        "train.bf16_weight_copies = false",
    ),
    ("train.precision='fp16'", "bf16"),
    ("model.dropout=0.1", "dropout is not supported"),
    ("model.activation='swish'", "swiglu"),
    ("model.activation='silu'", "did you mean `swiglu`"),
    ("model.activation=true", "as in activation = \"swiglu\""),
    ("model.moe=true", "as in moe = { n_experts"),
    ("model.mla=true", "as in mla = { kv_rank"),
    ("train.recompute=true", "as in recompute = "),
    ("schedule='cosine'", "as in schedule = { kind = \"cosine\""),
    ("data.train='text.txt'", "as in train = [\"text.txt\"]"),
    ("optimizer.betas=0.9", "as in betas = [0.9, 0.95]"),
    (
        "optimizer.clip_grad_norm=false",
        "as in clip_grad_norm = 1.0",
    ),
    (
        "optimizer=[]",
        "optimizer: expected a section, found an array",
    ),
    ("train=[2]", "train: expected a section, found an array"),
    ("log=true", "as in log = { layers_every = 10 }"),
    ("train.steps='many'", "as in steps = 1000"),
    (
        "model.placement={base='pre-norm',q_norm=true}",
        "q_norm = \"per_head\"",
    ),
    (
        "model.placement={block={attn={q_norm=true}}}",
        "attn_inner = { q_norm = \"per_head\"",
    ),
    (
        "model.norm={kind='rmsnorm',eps='1e-6'}",
        "the string \"1e-6\"",
    ),
    ("model.norm={kind='layer-normal'}", "\"layer-normal\""),
];

#[test]
fn the_format_of_the_residual_stream_can_be_set_back_for_f32() {
    assert_eq!(problem("train.residual_precision='f32'"), None);
}

#[test]
fn common_misspellings_are_corrected_in_the_error() {
    for (setting, words) in MISSPELLED {
        let text =
            problem(setting).unwrap_or_else(|| panic!("{setting} is accepted, expected an error"));
        assert!(text.contains(words), "{setting}: {text}");
    }
}

#[test]
fn placement_values_accept_dashes() {
    for (dashes, underscores) in [
        (
            "model.placement={base='pre-norm',block={attn_inner={q_norm='per-head'}}}",
            "model.placement={base='pre-norm',block={attn_inner={q_norm='per_head'}}}",
        ),
        (
            "model.placement={block={attn={skip_scale='inv-sqrt-layer'}}}",
            "model.placement={block={attn={skip_scale='inv_sqrt_layer'}}}",
        ),
    ] {
        let model = |setting: &str| {
            let config = Config::parse(TEXT, &[setting.to_owned()]);
            config.unwrap().model_config().unwrap()
        };
        assert_eq!(model(dashes), model(underscores));
    }
}
