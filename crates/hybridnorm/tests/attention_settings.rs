//! Settings of attention and positions in `[model]`: their effect, and errors where they have none.

use hybridnorm::Device;
use hybridnorm::model::Model;
use hybridnorm::train::Config;

/// Returns the configuration of a small model with additional lines of `[model]`, or the error.
fn model_config(lines: &str) -> Result<hybridnorm::model::ModelConfig, String> {
    let text = format!(
        "[model]\nd_model = 16\nn_layers = 4\nn_heads = 2\nd_ff = 24\nvocab_size = 20\n{lines}\n\
         [data]\ntrain = [\"stories:4\"]\ntokenizer = \"bytes\"\n"
    );
    let config = Config::parse(&text, &[]).map_err(|error| error.to_string())?;
    let model = config
        .model
        .unwrap()
        .resolve(32, None)
        .map_err(|error| error.to_string())?;
    model.resolve().map_err(|error| error.to_string())?;
    Ok(model)
}

fn logits(lines: &str, ids: &[i32]) -> Vec<f32> {
    let mut model = Model::new(&model_config(lines).unwrap(), 1, Device::Cpu).unwrap();
    model.logits(ids, 1, ids.len()).unwrap().into_f32()
}

/// With a window of w in each of L layers, a token affects at most the next L(w - 1) positions.
#[test]
fn a_window_limits_how_far_a_token_reaches() {
    let lines =
        "attention_overrides = [{ layers = { range = { start = 0, end = 4 } }, window = 3 }]";
    let ids: Vec<i32> = (0..20).collect();
    let mut changed = ids.clone();
    changed[2] = 19;
    let differs = |lines: &str| -> Vec<bool> {
        let (a, b) = (logits(lines, &ids), logits(lines, &changed));
        a.chunks(20)
            .zip(b.chunks(20))
            .map(|(a, b)| a != b)
            .collect()
    };
    let reached = differs(lines);
    assert_eq!(
        reached.iter().rposition(|differs| *differs),
        Some(2 + 4 * 2)
    );
    assert!(differs("")[19]);
}

/// Without a position embedding, the causal mask alone distinguishes positions: attention of the first layer sees a set.
#[test]
fn position_embeddings_distinguish_orders() {
    // The last position of a model with one layer after two orders of the same tokens.
    let last = |lines: &str, ids: &[i32]| {
        let config = model_config(lines).unwrap().with_n_layers(1);
        let mut model = Model::new(&config, 1, Device::Cpu).unwrap();
        let all = model.logits(ids, 1, ids.len()).unwrap().into_f32();
        all[all.len() - 20..].to_vec()
    };
    let deviation = |lines: &str| {
        let (a, b) = (last(lines, &[1, 2, 3, 4]), last(lines, &[2, 1, 3, 4]));
        a.iter()
            .zip(b)
            .fold(0.0, |largest: f32, (a, b)| largest.max((a - b).abs()))
    };
    assert!(deviation("position_embedding = \"none\"") < 1e-6);
    for lines in ["", "position_embedding = \"learned\"", "rope_dim = 4"] {
        assert!(deviation(lines) > 1e-5, "{lines}");
    }
}

/// Decoding with a cache continues positions and windows.
#[test]
fn cached_logits_match() {
    for lines in [
        "position_embedding = \"learned\"\nbias = { qkv = true, out = true, feed_forward = true }",
        "rope_dim = 4\nattention_overrides = [{ layers = { every = 2 }, window = 3 }, { layers = { last = 1 }, no_rope = true }]",
    ] {
        let ids: Vec<i32> = (0..12).collect();
        let all = logits(lines, &ids);
        let mut model = Model::new(&model_config(lines).unwrap(), 1, Device::Cpu).unwrap();
        let mut cache = model.new_cache(1, 12).unwrap();
        let mut found = model.next_logits(&ids[..7], &mut cache, false).unwrap();
        for position in 7..12 {
            let expected = &all[(position - 1) * 20..position * 20];
            let largest = found
                .iter()
                .zip(expected)
                .fold(0.0, |m: f32, (a, b)| m.max((a - b).abs()));
            assert!(largest < 1e-5, "{lines}: position {position}: {largest}");
            found = model
                .next_logits(&ids[position..=position], &mut cache, false)
                .unwrap();
        }
    }
}

#[test]
fn settings_without_effect_are_rejected() {
    for (lines, problem) in [
        (
            "attention_overrides = [{ layers = { every = 2 } }]",
            "neither a window nor the rotary embedding",
        ),
        (
            "attention_overrides = [{ layers = { every = 2 }, window = 32 }]",
            "at most model.max_seq_len = 32",
        ),
        (
            "attention_overrides = [{ layers = { every = 2 }, window = 0 }]",
            "at least 1",
        ),
        (
            "attention_overrides = [{ layers = { every = 5 }, window = 4 }]",
            "selects none of the 4 blocks",
        ),
        (
            "attention_overrides = [{ layers = [4], window = 4 }]",
            "attention_overrides[0].layers",
        ),
        (
            "attention_overrides = [{ layers = [0], no_rope = true, rope_theta = 5.0 }]",
            "both removes and sets",
        ),
        (
            "attention_overrides = [{ layers = [0], rope_theta = 0.5 }]",
            "rope_theta = 0.5",
        ),
        ("rope_dim = 8", "less than the width of a head, 8"),
        ("rope_dim = 3", "an even number"),
        (
            "position_embedding = \"learned\"\nrope_theta = 500.0",
            "model.rope_theta",
        ),
        (
            "position_embedding = \"none\"\nrope_dim = 4",
            "model.rope_dim",
        ),
        (
            "position_embedding = \"none\"\nattention_overrides = [{ layers = [0], no_rope = true }]",
            "no block has a rotary embedding",
        ),
        (
            "bias = { qkv = true }\nmla = { kv_rank = 8, nope_dim = 4, rope_dim = 4, v_dim = 4 }",
            "model.bias.qkv",
        ),
        (
            "attention_overrides = [{ layers = [0], window = 4 }]\n\
             mla = { kv_rank = 8, nope_dim = 4, rope_dim = 4, v_dim = 4 }",
            "latent attention has no sliding window",
        ),
    ] {
        let error = model_config(lines).unwrap_err();
        assert!(error.contains(problem), "{lines}: {error}");
    }
}
