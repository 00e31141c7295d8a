//! A model whose weights are no numbers is an error, wherever it is asked for something.

mod common;

use common::*;
use hybridnorm::data::{ReadyTokens, TokenDataset, Tokenizer, Windows};
use hybridnorm::eval::{self, Sampling};
use hybridnorm::model::{Decoder, ModelConfig, params};
use hybridnorm::tensors;

#[test]
fn broken_weights_are_noticed() {
    let tokenizer = Tokenizer::bytes();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size() + 40,
        ..tiny(named("hybridnorm-star"))
    };
    let whole = Decoder::new(&config, 1, &plain()).unwrap();
    assert_eq!(tensors::broken(&whole), None);
    let mut values = params::values(&whole);
    values.get_mut("blocks.1.attention.out").unwrap().data[3] = f32::NAN;
    let broken = params::load(whole.clone(), values).unwrap();
    assert_eq!(
        tensors::broken(&broken).as_deref(),
        Some("blocks.1.attention.out")
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.u16");
    std::fs::write(&file, [7, 0].repeat(40)).unwrap();
    let mut data = TokenDataset::new(4).unwrap();
    let ready = ReadyTokens::open(file.to_str().unwrap(), config.vocab_size).unwrap();
    data.push_ready(ready).unwrap();
    assert!(eval::loss(&whole, &data, 2, Windows::All).is_ok());
    let error = eval::loss(&broken, &data, 2, Windows::All).unwrap_err();
    assert!(error.to_string().contains("weights are broken"), "{error}");

    let write = |model: &Decoder| eval::write(model, &tokenizer, "a", 200, Sampling::default());
    // The model has rows that stand for no token; they are never drawn.
    assert!(write(&whole).is_ok());
    let error = write(&broken).unwrap_err();
    assert!(error.to_string().contains("weights are broken"), "{error}");
}
