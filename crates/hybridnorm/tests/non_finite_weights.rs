//! Evaluation and generation with non-finite weights are errors.

mod common;

use common::*;
use hybridnorm::Device;
use hybridnorm::data::{PretokenizedFile, TokenDataset, Tokenizer, Windows};
use hybridnorm::eval::{self, Sampling};
use hybridnorm::model::Model;

#[test]
fn non_finite_weights_are_detected() {
    let tokenizer = Tokenizer::bytes();
    let config = tiny(named("hybridnorm-star")).with_vocab_size(tokenizer.vocab_size() + 40);
    let mut intact = Model::new(&config, 1, Device::Cpu).unwrap();
    assert_eq!(intact.first_non_finite(), None);
    let mut values = intact.values();
    values.get_mut("blocks.1.attention.out").unwrap().data[3] = f32::NAN;
    let mut broken = Model::uninitialized(&config, Device::Cpu).unwrap();
    broken.load(values).unwrap();
    assert_eq!(
        broken.first_non_finite().as_deref(),
        Some("blocks.1.attention.out")
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.u16");
    std::fs::write(&file, [7, 0].repeat(40)).unwrap();
    let mut data = TokenDataset::new(4).unwrap();
    let pretokenized = PretokenizedFile::open(file.to_str().unwrap(), config.vocab_size).unwrap();
    data.push_pretokenized(pretokenized).unwrap();
    assert!(eval::loss(&mut intact, &data, 2, Windows::All).is_ok());
    let error = eval::loss(&mut broken, &data, 2, Windows::All).unwrap_err();
    assert!(
        error.to_string().contains("weights may be corrupt"),
        "{error}"
    );

    let generate =
        |model: &mut Model| eval::generate_text(model, &tokenizer, "a", 200, Sampling::default());
    // The vocabulary has rows without a token; they are never sampled.
    assert!(generate(&mut intact).is_ok());
    let error = generate(&mut broken).unwrap_err();
    assert!(
        error.to_string().contains("weights may be corrupt"),
        "{error}"
    );
}
